"""Models and tokenizers: load, place on devices, memory, fingerprints, downloads, chat templates, hidden states.

May import records and common.
"""
