"""The memory that a job takes on a GPU, found before anything is loaded: the library's own code runs on fake tensors.

May import what jobs use: evaluation, student, teacher, generation, models, common. No job imports it.
"""
