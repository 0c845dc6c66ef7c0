"""The shapes of an experiment's models, before any of them is downloaded or made."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill.common.errors import InputError
from distill.models.hub_names import get_public_name
from distill.plan.experiment import Config
from distill.plan.known_models import KNOWN_MODELS, make_qwen2_config

Reader = Callable[[str], dict[str, Any] | None]  # config.json of a hub id


def read_cached_config(model: str) -> dict[str, Any] | None:
    """Read config.json of a hub id from the hub's cache on this machine; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(model, "config.json")
    return json.loads(Path(path).read_text(encoding="utf-8")) if isinstance(path, str) else None


def fetch_config(model: str) -> dict[str, Any] | None:
    """Download config.json of a hub id, a few kB; None if the hub does not have it or cannot be reached."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return json.loads(Path(hf_hub_download(model, "config.json")).read_text(encoding="utf-8"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
        return None


def find_config(config: Config, model: str, read_hub: Reader) -> dict[str, Any]:
    """Return the content of a model's config.json; see `read_shape`.

    Raises:
        InputError: as `read_shape`, or the weights are stored quantized, which fake models are not.
    """
    found = read_shape(config, model, read_hub)
    if stored := found.get("quantization_config"):
        kind = stored.get("quant_method", "unknown method")
        raise InputError(f"{model}: weights that are stored quantized ({kind}) cannot be planned")
    return found


def read_shape(config: Config, model: str, read_hub: Reader) -> dict[str, Any]:
    """Return the content of a model's config.json, wherever it is.

    Args:
        config: the checked configuration.
        model: folder or hub id, as in `get_teacher` and `get_initial_model`.
        read_hub: how hub ids are read that are neither here nor well known.

    Raises:
        InputError: it is not here, and its hub cannot be asked.
    """
    path = Path(model) / "config.json"
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: expected a JSON object ({error})") from None
        return dict(found)
    if "demo" in config and model in ("models/teacher", "models/student"):
        return make_demo_config(config, model.removeprefix("models/"))
    name = get_public_name(model)
    if (known := name.removeprefix("models/modelscope/")) in KNOWN_MODELS:
        return KNOWN_MODELS[known]
    # Another hub may have another model of the same name.
    found = read_hub(name) if name.count("/") == 1 and not name.startswith(("models/", ".", "/")) else None
    if found is None:
        raise InputError(
            f"{model}: the shape of the model is unknown until its config.json is here or can be downloaded"
        )
    return found


def make_demo_config(config: Config, part: str) -> dict[str, Any]:
    """Return the content of config.json of the demo's teacher or student."""
    sizes = config["demo"][part]
    heads = sizes["heads"]
    return make_qwen2_config(
        sizes["hidden"], sizes["layers"], heads, heads, sizes["intermediate"], sizes["vocab_size"], tied=True
    )


def keep_layers(settings: dict[str, Any], layers: int) -> dict[str, Any]:
    """Return config.json of a copy of some of a model's layers."""
    if isinstance(settings.get("text_config"), dict):
        return settings | {"text_config": keep_layers(settings["text_config"], layers)}
    total = settings["num_hidden_layers"]
    lists = {
        key: value[:layers]
        for key, value in settings.items()
        if "layer" in key and isinstance(value, list) and len(value) == total
    }
    return settings | lists | {"num_hidden_layers": layers}
