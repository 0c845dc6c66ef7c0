"""The teacher's answers to a category's prompts, and its cached signal: how it is computed, stored and read. May import
generation, models, records and common.
"""
