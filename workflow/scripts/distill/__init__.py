"""Distillation of large language models: the library behind the workflow's scripts.

It lies beside the scripts, so that they import it without an installation. Its packages are named after the data path;
imports run one way, from the top of this list to the bottom: plan, demo, export, report, evaluation, student, teacher,
generation, models, records, common.
"""
