"""Models to deploy: merged, nf4, int8 and GGUF folders, model cards, LLaMA-Factory files, serving. May import every
package below it: report, evaluation, student, teacher, generation, models, records and common.
"""
