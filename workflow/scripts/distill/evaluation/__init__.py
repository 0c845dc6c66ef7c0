"""Predictions, the teacher's judgements, likelihoods, scores with confidence intervals, comparisons. May import
generation, models, records and common.
"""
