"""What a server changes about a teacher's signal. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from distill.generation.engine import ENGINES
from distill.generation.options import get_result_arguments


def describe_serving(engine: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a server changes about the signal of a model; empty if it computes that of the plain weights.

    Args:
        engine: name of the engine.
        arguments: the options of vLLM.

    Returns:
        `engine`, the options of vLLM that decide its results, and `weights: served` if only the server has them.
    """
    kind = ENGINES[engine]
    if not kind.loads_weights:
        return {"engine": engine, "weights": "served"}
    changed = get_result_arguments(arguments) if kind.starts_vllm else {}
    changed.pop("max_model_len", None)  # it cuts answers alone
    return {"engine": engine} | changed if changed else {}
