"""Names with a fixed meaning. The names of exported variants are in variants.py."""

TEACHER = "teacher"  # evaluated model
POOLED = "all"  # category that pools all categories
BASE = "base"  # suffix of a student's name before distillation: `{student}_base`
