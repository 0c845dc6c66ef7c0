"""Data steps: raw records, source formats, mix, Alpaca questions, prompts, answer format, splits. May import common."""
