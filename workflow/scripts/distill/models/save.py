"""Save a model as a folder that any program can load, and that stops where a turn ends."""

import json
import logging
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from distill.common.errors import InputError
from distill.common.files import write_json
from distill.models.chat import get_end_of_turn_id
from distill.models.fingerprint import find_gguf
from distill.models.load import load_tokenizer

logger = logging.getLogger(__name__)

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAMS = ("num_beams", "early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty", "constraints")
ONE_FILE = "1000TB"  # shard size: the workflow expects a single model.safetensors, however large
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json")


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save a model and its tokenizer, with all weights in one file and the stop tokens of `set_stop_tokens`.

    Args:
        model: a causal model.
        tokenizer: its tokenizer.
        folder: existing folder.

    Raises:
        InputError: a file of MODEL_FILES was not written.
    """
    set_stop_tokens(model.generation_config, tokenizer)
    reset_invalid(model.generation_config)
    model.save_pretrained(folder, max_shard_size=ONE_FILE)
    tokenizer.save_pretrained(folder)
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder}: expected transformers to write {', '.join(missing)}, found no such file")


def reset_invalid(generation: Any) -> None:
    """Reset generation settings that contradict each other, such as a temperature with `do_sample: false`.

    transformers reads them but refuses to write them. Sampling settings make sampling the default.

    Args:
        generation: GenerationConfig of a model, changed in place.
    """
    if (reason := find_contradiction(generation)) is None:
        return
    default = GenerationConfig()
    is_sampled = any(getattr(generation, name, None) not in (None, getattr(default, name)) for name in SAMPLING)
    if is_sampled:
        generation.do_sample = True
    if find_contradiction(generation):
        for name in BEAMS:
            setattr(generation, name, getattr(default, name))
    logger.warning("generation_config.json: settings that contradict each other were reset: %s", reason)


def find_contradiction(generation: Any) -> str | None:
    """Return why transformers would not write generation settings; None if it would."""
    try:
        generation.validate(strict=True)
    except ValueError as error:
        return str(error)
    return None


def set_stop_tokens(generation: Any, tokenizer: Any) -> bool:
    """Make a model stop at the end of a turn, in every program that reads its generation settings or tokenizer.

    A base model often has the EOS token `<|endoftext|>` and a chat template that ends turns with `<|im_end|>`. After
    training it ends its answers with the latter, which programs would ignore. The token that ends a turn is added to
    the stop tokens, and becomes the tokenizer's EOS token unless the chat template itself uses `eos_token`. Without a
    chat template there are no turns, and nothing changes.

    Args:
        generation: GenerationConfig of the model, changed in place.
        tokenizer: tokenizer of the model, changed in place.

    Returns:
        Whether either has changed.
    """
    if not tokenizer.chat_template:
        return False
    end, named = get_end_of_turn_id(tokenizer), generation.eos_token_id
    stops = [named] if isinstance(named, int) else list(named or [])
    is_missing = end not in stops
    if is_missing:
        generation.eos_token_id = [end, *stops] if stops else end
        # Otherwise transformers may read the stop tokens of config.json again when it loads the model.
        generation._from_model_config = False
    # A token that ordinary text contains must not become a special token.
    is_other = tokenizer.eos_token_id != end and end in tokenizer.added_tokens_decoder
    is_other = is_other and "eos_token" not in str(tokenizer.chat_template)
    if is_other:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    return is_missing or is_other


def write_stop_tokens(folder: Path) -> None:
    """Apply `set_stop_tokens` to the files of a model folder; they stay as they are if nothing changes.

    transformers reads no generation_config.json beside a GGUF file, so config.json gets the stop tokens as well.
    """
    generation, tokenizer = GenerationConfig.from_pretrained(folder), load_tokenizer(str(folder))
    if not set_stop_tokens(generation, tokenizer):
        return
    generation.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if find_gguf(folder):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        write_json(folder / "config.json", config | {"eos_token_id": generation.eos_token_id})
