"""The demo's data, tokenizer and models, and the SmolLM2 model. May import student, models, records and common."""
