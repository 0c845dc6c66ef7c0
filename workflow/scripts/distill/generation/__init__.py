"""Generating answers: engines, continuous batching, prefix sharing, KV cache, sampling, the answer cache. May import
models, records and common.
"""
