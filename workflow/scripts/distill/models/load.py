"""Load models and tokenizers: device, dtype, quantization, attention, adapter."""

import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import (
    is_bitsandbytes_available,
    is_compressed_tensors_available,
    is_flash_attn_2_available,
    is_flash_attn_3_available,
)
from transformers.utils import logging as transformers_logging

from distill.common.errors import InputError
from distill.models.adapters import load_adapter
from distill.models.chat import ChatTemplate, get_end_of_turn_id
from distill.models.fingerprint import find_gguf
from distill.models.gguf_files import gguf_settings
from distill.models.memory import build_skeleton, is_packed, limit_integrated, quantized_layers, stored_quantization
from distill.models.options import TEMPLATE_DATE
from distill.models.placement import align_devices, place_model
from distill.models.sentencepiece_files import check_sentencepiece
from distill.models.split_check import check_split

logger = logging.getLogger(__name__)

if not sys.stderr.isatty():
    transformers_logging.disable_progress_bar()  # log files need no progress bars

GPU_FILE = Path("/dev/nvidia0")  # exists if the driver of a GPU is loaded
GPU_VARIABLES = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES")  # name the GPUs that a job was given
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def select_device(device: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`; `auto` is CUDA if there is a GPU.

    A GPU is prepared for this process, see `prepare_gpu`.

    Raises:
        InputError: `cuda` is requested without a GPU, or `auto` on a machine whose GPU cannot be used.
    """
    if device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        prepare_gpu()
        return torch.device("cuda")
    if device == "cuda":
        raise InputError(f"device: expected a CUDA GPU, found none ({find_cuda_problem()}); set `device: cpu`")
    if GPU_FILE.exists():
        raise InputError(
            f"device: this machine has a GPU that cannot be used ({find_cuda_problem()}); set `device: cpu` "
            "to do without it"
        )
    if given := next((name for name in GPU_VARIABLES if os.environ.get(name)), None):
        logger.warning("%s names a GPU, but there is none (%s): computing on the CPU", given, find_cuda_problem())
    return torch.device("cpu")


def prepare_gpu() -> None:
    """Choose this process's GPU as its launcher says, limit its memory if it is the machine's, and set kernels.

    cuDNN's attention, which torch prefers on Hopper and Blackwell, builds a plan for each new shape, which takes about
    half a second; here nearly every batch has another shape.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    gpu = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(gpu)
    limit_integrated(gpu)


def find_cuda_problem() -> str:
    """Return why torch finds no GPU, such as a driver that is too old, with what this build of torch needs."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        words = str(error).strip().splitlines()
        return f"torch {torch.__version__} needs CUDA {torch.version.cuda}: {words[0] if words else 'no reason given'}"
    return f"torch {torch.__version__} with CUDA {torch.version.cuda} finds no device"


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware supports bfloat16; emulation does not count."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def select_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the torch dtype of a name; on a GPU without bfloat16, `bfloat16` gives float16."""
    if dtype == "bfloat16" and not has_bfloat16(device):
        logger.warning("this GPU does not support bfloat16; using float16")
        return torch.float16
    return DTYPES[dtype]


def load_tokenizer(model: str) -> Any:
    """Load the tokenizer of a hub id or local folder.

    Without a padding token it pads with eos_token, or else with the token that ends a turn in its chat template.

    Raises:
        InputError: the tokenizer cannot be loaded.
    """
    check_source(model)
    try:
        tokenizer = check_sentencepiece(model, AutoTokenizer.from_pretrained(model))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # files with other keys or types
        raise InputError(f"{model}: cannot load the tokenizer: {type(error).__name__}: {error}") from error
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise InputError(f"{model}: cannot load the tokenizer: expected tokens, found only special ones")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None and tokenizer.chat_template:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(get_end_of_turn_id(tokenizer))
    return tokenizer


def load_chat(model: str, arguments: Mapping[str, Any] | None = None, date: str = TEMPLATE_DATE) -> ChatTemplate:
    """Load the tokenizer of a hub id or local folder with its chat template, and the number of the model's embeddings.

    Args:
        model: hub id or local folder.
        arguments, date: see `ChatTemplate`.

    Raises:
        InputError: tokenizer or config.json cannot be loaded, or the arguments do not fit the template.
    """
    tokenizer = load_tokenizer(model)
    rows = getattr(load_config(model).get_text_config(), "vocab_size", None)
    return ChatTemplate(tokenizer, arguments or {}, date, rows)


def check_source(model: str) -> None:
    """Check that a model is a local folder or a hub id; transformers would try to download a missing folder.

    Raises:
        InputError: a local folder has no config.json, or the name is neither a folder nor a hub id.
    """
    is_hub_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    if Path(model).is_dir():
        if not (Path(model) / "config.json").exists():
            raise InputError(f"{model}: expected a model folder, found no config.json in it")
        if (Path(model) / "adapter_config.json").is_file():
            raise InputError(
                f"{model}: expected a model without an adapter, found adapter_config.json beside config.json, which "
                "transformers would load, too; move the adapter to a folder of its own"
            )
    elif not is_hub_id:
        raise InputError(f"{model}: expected a local model folder or a hub id `owner/name`, found no such folder")


def load_config(model: str) -> Any:
    """Load the configuration of a hub id or local folder.

    Raises:
        InputError: config.json is missing, or describes no model that transformers supports.
    """
    check_source(model)
    try:
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        raise InputError(f"{model}: cannot read config.json: {error}") from error


def load_generation_config(model: str) -> GenerationConfig:
    """Load the generation settings of a hub id or local folder as `load_model` does; they may be in config.json."""
    try:
        return GenerationConfig.from_pretrained(model)
    except OSError:  # there is no generation_config.json
        return GenerationConfig.from_model_config(load_config(model))


def check_quantization(model: str, skeleton: Any, quantization: str, device: torch.device) -> None:
    """Check before loading that bitsandbytes can quantize a model.

    Raises:
        InputError: bitsandbytes is not installed, the weights are quantized already, or the layers have widths that nf4
            does not support on a CPU.
    """
    if quantization == "none":
        return
    if stored := "gguf" if find_gguf(model) else stored_quantization(skeleton.config):
        raise InputError(
            f"{model}: quantization: expected none, since the weights are quantized already ({stored}), "
            f"found {quantization}"
        )
    if not is_bitsandbytes_available():
        raise InputError(
            f"quantization: {quantization} needs the package bitsandbytes, which is not installed; "
            "install it or set `quantization: none`"
        )
    if quantization == "nf4" and device.type == "cpu":
        # The CPU kernels read the scales of blocks of 64 weights row by row, and pack 32 rows together.
        for name, layer in quantized_layers(skeleton).items():
            rows, width = layer.weight.shape
            if width % 64 or rows % 32:
                raise InputError(
                    f"{model}: quantization: nf4 on a CPU needs layers of 64·n inputs and 32·n outputs, found {width} "
                    f"and {rows} in {name}; set `quantization: int8` or `quantization: none`"
                )


def quantization_config(quantization: str, dtype: torch.dtype) -> Any:
    """Return the bitsandbytes settings of `int8` (LLM.int8) or `nf4` (double quantization, computing in `dtype`).

    The result is None for `none`.
    """
    # With int8, it warns in every call of every layer that it computes in float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def weights_settings(model: str, quantization: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for the weights: their quantization, or the GGUF file with them."""
    if name := find_gguf(model):
        return gguf_settings(model, name)
    if is_packed(load_config(model)):  # transformers would unpack them in the first forward pass, NVFP4 in bfloat16
        from transformers import CompressedTensorsConfig

        if not is_compressed_tensors_available():
            raise InputError(
                f"{model}: expected the package compressed-tensors, which unpacks its weights, found no such package; "
                "install it with `pip install compressed-tensors`"
            )
        # The file says how the weights are packed, this argument what to do with them; transformers warns of the two.
        warnings.filterwarnings("ignore", message="You passed `quantization_config`")
        return {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    chosen = quantization_config(quantization, dtype)
    # An explicit None would hide the quantization of stored weights, which would then be read as unquantized.
    return {} if chosen is None else {"quantization_config": chosen}


def choose_attention(skeleton: Any, device: torch.device, dtype: torch.dtype, for_generation: bool) -> str:
    """Return the name of the attention implementation in transformers.

    Generation masks keys row by row, which flash-attn's kernels do not support. torch's `sdpa` does, and uses a flash
    kernel when there is no mask.
    """
    if not for_generation and skeleton._supports_flash_attn and takes_flash_attention(device, dtype):
        if is_flash_attn_3_available():
            return "flash_attention_3"
        if is_flash_attn_2_available():
            return "flash_attention_2"
    return "sdpa" if skeleton._supports_sdpa else "eager"


def takes_flash_attention(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether flash-attn has a kernel: 16-bit dtypes on Ampere or newer GPUs."""
    return device.type == "cuda" and dtype != torch.float32 and torch.cuda.get_device_capability(device)[0] >= 8


def load_model(
    model: str,
    device: torch.device,
    dtype: torch.dtype,
    quantization: str = "none",
    adapter: str | None = None,
    trainable: bool = False,
    for_generation: bool = True,
    is_run: bool = True,
) -> Any:
    """Load a causal language model on its device, or over all GPUs if one is too small.

    The weights of a folder with a single GGUF file are dequantized to `dtype`. Inputs belong on `model.device`, where
    the embeddings are, and outputs are returned there.

    Args:
        model: hub id or local folder.
        device: device to load it on.
        dtype: dtype of weights that are not quantized.
        quantization: `none`, `int8` or `nf4`.
        adapter: LoRA checkpoint; it is merged unless the weights are quantized.
        trainable: whether the model is returned in training mode; otherwise in evaluation mode, without gradients.
        for_generation: whether attention must support generation, see `choose_attention`; ignored if trainable.
        is_run: whether the model is run, and therefore checked by `check_split`. A model that is only saved must not
            be: bitsandbytes rearranges quantized weights in their first forward pass.

    Raises:
        InputError: model or adapter cannot be loaded, the weights exceed the total memory, or decoder and head do not
            give the model's logits (see `check_split`).
    """
    skeleton = build_skeleton(load_config(model), dtype)
    check_quantization(model, skeleton, quantization, device)
    attention = choose_attention(skeleton, device, dtype, for_generation and not trainable)
    placed: dict[str, Any] = {"device_map": None}  # the Trainer places a student
    if not trainable:
        placed = place_model(model, skeleton, device, dtype, quantization)
    logger.info("%s: attention implementation %s", model, attention)
    try:
        result: Any = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=dtype,
            **weights_settings(model, quantization, dtype),
            attn_implementation=attention,
            output_loading_info=True,
            **placed,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{model}: cannot load the model: {error}") from error
    loaded, report = result
    check_loaded(model, loaded, report)
    if trainable and type(loaded.config) not in AutoModelForCausalLM._model_mapping:
        raise InputError(
            f"{model}: {type(loaded).__name__} cannot be trained: transformers loads it as a part of "
            f"{skeleton.config.model_type}, and cannot load it again when it is saved alone"
        )
    align_devices(loaded)
    if adapter:
        loaded = load_adapter(loaded, adapter, merge=not getattr(loaded, "is_quantized", False))
    if not trainable:
        loaded.eval().requires_grad_(False)
    if is_run:
        check_split(model, loaded)
    return loaded


def check_loaded(model: str, loaded: Any, report: Any) -> None:
    """Check a loaded model.

    Raises:
        InputError: weights are missing.
    """
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise InputError(f"{model}: expected all weights of the model, {len(missing)} are missing, first {missing[0]}")


def checkpoint_activations(model: Any) -> None:
    """Let a model recompute activations in the backward pass, as the Trainer does with `gradient_checkpointing`."""
    # transformers 5.17, with which the benchmarks run, has only the method's former name.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
