"""Records as files: raw records, the answer format, the mix, Alpaca questions, prompts, splits. May import common."""
