"""Generation: engines, continuous batching, prefix sharing, KV cache, sampling and the answer cache. May import models,
records and common.
"""
