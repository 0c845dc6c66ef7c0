"""What a server changes about a teacher's signal. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from distill.common.digest import digest_of
from distill.generation.engine import ENGINES
from distill.generation.options import get_result_arguments
from distill.models.fingerprint import fingerprint_model


def describe_serving(engine: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a server changes about the signal of a model; empty if it computes that of the plain weights.

    Args:
        engine: name of the engine.
        arguments: the options of vLLM.
    """
    kind = ENGINES[engine]
    if kind.needs_base_url:
        return {"engine": engine}
    changed = get_result_arguments(arguments) if kind.starts_vllm else {}
    changed.pop("max_model_len", None)  # it cuts answers alone
    return {"engine": engine} | changed if changed else {}


def fingerprint_teacher(model: str, adapter: str | None, serving: Mapping[str, Any]) -> str:
    """Return `fingerprint_model` of local weights, or a digest of the name under which a server offers them."""
    kind = ENGINES[serving["engine"]] if serving else None
    if kind and not kind.loads_weights:
        return digest_of({"engine": serving["engine"], "model": model})
    return fingerprint_model(model, adapter)
