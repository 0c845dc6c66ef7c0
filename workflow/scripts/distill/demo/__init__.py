"""The demo's data, tokenizer and models, and the SmolLM2 example. May import student, models, records and common."""
