"""Loading models and tokenizers: device, precision, quantization, adapters."""

import hashlib
import json
import logging
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from distill.errors import InputError
from distill.model_files import list_model_files

log = logging.getLogger(__name__)
if not sys.stderr.isatty():
    transformers_logging.disable_progress_bar()  # in a log it is noise

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def select_device(device: str) -> torch.device:
    """`auto` is CUDA where there is a GPU, else the CPU.

    Raises:
        InputError: CUDA is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: expected a CUDA GPU, found none; set `device: auto` or `device: cpu`")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16; a GPU that only emulates it does not."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def select_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch dtype of a configured name; bfloat16 becomes float16 on a GPU that has no bfloat16."""
    if dtype == "bfloat16" and not has_bfloat16(device):
        log.warning("this GPU has no bfloat16; float16 is used instead")
        return torch.float16
    return DTYPES[dtype]


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a hub id or local folder, with a padding token.

    Raises:
        InputError: it cannot be loaded.
    """
    check_source(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise InputError(f"{model}: no tokenizer could be loaded: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_source(model: str) -> None:
    """Say early and plainly that a local folder is not there, before a hub is asked for it.

    Raises:
        InputError: `model` is written as a path and is no folder with a config.json.
    """
    is_hub_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    if Path(model).is_dir():
        if not (Path(model) / "config.json").exists():
            raise InputError(f"{model}: expected a model folder, found no config.json in it")
    elif not is_hub_id:
        raise InputError(f"{model}: expected a local model folder or a hub id `owner/name`, found no such folder")


def quantization_config(quantization: str, dtype: torch.dtype) -> Any:
    """bitsandbytes settings: `int8` (LLM.int8), `nf4` (double quantization, computing in `dtype`), or none."""
    if quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def load_model(
    model: str,
    device: torch.device,
    dtype: torch.dtype,
    quantization: str = "none",
    adapter: str | None = None,
    trainable: bool = False,
) -> Any:
    """A causal language model on its device.

    Args:
        model: hub id or local folder.
        quantization: `none`, `int8` or `nf4`.
        adapter: a LoRA checkpoint; merged into the weights unless they are quantized.
        trainable: for training: in training mode; otherwise in evaluation mode, without gradients.

    Raises:
        InputError: model or adapter cannot be loaded, or the model changes its logits after the head.
    """
    check_source(model)
    settings = quantization_config(quantization, dtype)
    try:
        result: Any = AutoModelForCausalLM.from_pretrained(
            # A student is placed by the Trainer.
            model,
            dtype=dtype,
            quantization_config=settings,
            device_map=None if trainable else {"": device},
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{model}: no model could be loaded: {error}") from error
    loaded, report = result
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise InputError(f"{model}: expected all weights of the model, {len(missing)} are missing, first {missing[0]}")
    changes = [name for name in LOGIT_CHANGES if getattr(loaded.config, name, None) not in (None, 1, 1.0)]
    if changes:
        raise InputError(f"{model}: models that change logits after the head are not supported ({', '.join(changes)})")
    if adapter:
        loaded = load_adapter(loaded, adapter, merge=quantization == "none")
    if not trainable:
        loaded.eval().requires_grad_(False)
    return loaded


def check_adapter(adapter: str) -> None:
    """Say plainly that a folder is no adapter checkpoint.

    Raises:
        InputError: there is no adapter_config.json in it.
    """
    if not (Path(adapter) / "adapter_config.json").exists():
        raise InputError(f"{adapter}: expected a LoRA checkpoint, found no adapter_config.json in it")


def load_adapter(model: Any, adapter: str, merge: bool) -> Any:
    """Put a PEFT adapter on a model; merged where the weights can take it.

    Raises:
        InputError: the folder is no adapter checkpoint.
    """
    check_adapter(adapter)
    from peft import PeftModel

    try:
        with_adapter = PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{adapter}: the adapter does not fit the model: {error}") from error
    return with_adapter.merge_and_unload() if merge else with_adapter


def decoder_and_head(model: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The part of a model that gives the last hidden states, and the head that projects them to logits."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    return base.get_decoder(), base.get_output_embeddings()


def memory_mb(device: torch.device) -> int:
    """The most memory this process has held so far, in MiB: of the GPU, or resident where it runs on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def fingerprint_files(folder: str) -> str:
    """Digest of what decides a model or adapter folder's answers: weights, configuration, tokenizer, template."""
    digest = hashlib.sha256()
    for path in list_model_files(folder):
        with open(path, "rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def fingerprint_model(model: str, adapter: str | None, commit: str | None) -> str:
    """Digest of a model and its adapter by content; a hub model is named by the commit that was loaded.

    Raises:
        InputError: the adapter is no checkpoint.
    """
    if adapter:
        check_adapter(adapter)
    source = fingerprint_files(model) if Path(model).is_dir() else f"{model}@{commit}"
    return digest_of({"model": source, "adapter": fingerprint_files(adapter) if adapter else None})


def digest_of(value: Any) -> str:
    """32 hex digits that stand for a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
