"""Evaluation: predictions, the teacher's judgements, likelihoods, scores with confidence intervals, and comparisons.

May import generation, models, records and common.
"""
