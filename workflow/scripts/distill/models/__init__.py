"""Models and tokenizers: loading, placement, memory, fingerprints, downloads, chat templates, hidden states of
completions. May import common, and the record types of records.
"""
