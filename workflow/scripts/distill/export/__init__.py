"""Export of trained students: model folders, model cards, LLaMA-Factory files, serving commands. May import report,
evaluation, student, teacher, generation, models, records and common.
"""
