"""The teacher's answers to a category's prompts, and its cached signal: computing, storing and reading it. May import
generation, models, records and common.
"""
