"""Distillation of large language models: the library behind the workflow's scripts.

It lies beside the scripts, so that each of them imports it with no install. Modules of the data path import
no torch: a job's start-up is its cost.
"""
