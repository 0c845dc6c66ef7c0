"""Load the model to train."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from distill.common.errors import InputError
from distill.models.adapters import set_adapter, untie_adapted_head
from distill.models.load import load_config, load_model
from distill.models.memory import build_skeleton, stored_quantization
from distill.models.packing_check import check_packing
from distill.models.split_check import ERRORS, check_split
from distill.student.fsdp import list_layers
from distill.student.options import LoraOptions
from distill.student.quantization_aware import add_fake_quantization, check_model, check_used
from distill.student.student_run import StudentRun

logger = logging.getLogger(__name__)

SAVED_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # by train.precision


def check_student(run: StudentRun) -> StudentRun:
    """Check from its configuration alone that a student can be trained; return the options that it can be trained with.

    Models without gradient checkpointing are trained without it.

    Raises:
        InputError: its weights are quantized, strategy fsdp cannot find its layers, `lora` does not fit it, or its
            weights cannot be rounded while it trains (`quantization_aware`).
    """
    config = load_config(run.model)
    if stored := stored_quantization(config):
        raise InputError(
            f"{run.model}: expected a student with weights that are not quantized, found {stored} in config.json; "
            "train the original model and quantize it afterwards (export.variants)"
        )
    skeleton = build_skeleton(config, torch.float32)
    if run.train.strategy == "fsdp":
        list_layers(skeleton)
    if run.lora:
        choose_targets(skeleton, run.lora)
    if run.train.quantization_aware:
        check_model(skeleton, run.train.quantization_aware)
    if run.train.gradient_checkpointing and not skeleton.supports_gradient_checkpointing:
        logger.warning("%s has no gradient checkpointing: training without it", type(skeleton).__name__)
        return replace(run, train=replace(run.train, gradient_checkpointing=False))
    return run


def load_student(run: StudentRun, device: torch.device, previous: Path | None = None) -> Any:
    """The student with float32 weights, and a LoRA adapter if configured.

    Args:
        run: the options.
        device: where to load it.
        previous: the student to continue from, see `find_previous`.

    Raises:
        InputError: see `add_lora`, `check_used` and, with packing, `check_packing`.
    """
    source = run.model if run.lora or not previous else str(previous)
    model = load_model(source, device, torch.float32, trainable=True)
    if run.lora:
        model = add_lora(model, run.lora)
        if previous:
            set_adapter(model, previous / "adapter")
        check_split(run.model, model)
    if run.train.quantization_aware:
        add_fake_quantization(model, run.train.quantization_aware, SAVED_DTYPES[run.train.precision])
        check_used(run.model, model)
    if run.train.row_length is not None:
        if run.train.strategy != "fsdp":
            model.to(device)  # where the Trainer places it: whole rows take long on a CPU
        check_packing(run.model, model, run.train.row_length)
    return model


# ---- LoRA ----

LINEAR = (torch.nn.Linear, Conv1D)
# As in PEFT, which refuses these modules of these models.
MAMBA_TYPES = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
MAMBA_MODULES = ("out_proj", "conv1d")


def add_lora(model: Any, lora: LoraOptions) -> Any:
    """A model with an untrained LoRA adapter.

    Raises:
        InputError: see `choose_targets`.
    """
    from peft import LoraConfig, get_peft_model

    targets, experts = choose_targets(model, lora)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=targets,
        target_parameters=experts or None,
    )
    model_modules = [name for name, _ in model.named_modules()]
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"lora.target: {error}") from error
    if not takes_all(lora):
        check_adapted(adapted, lora.target, model_modules, experts)
    untie_adapted_head(adapted)
    if plain := list_plain_weights(adapted):
        logger.info("lora: no adapter on %s", ", ".join(plain))
    return adapted


def takes_all(lora: LoraOptions) -> bool:
    """Whether every module that fits gets an adapter."""
    return lora.target in ("all", ["all"])


def choose_targets(model: Any, lora: LoraOptions) -> tuple[str | list[str], list[str]]:
    """Divide `lora.target` into what PEFT adapts as modules, and the weights of experts, which are no modules.

    Returns:
        `target_modules` and `target_parameters` of a LoraConfig.

    Raises:
        InputError: a name in `lora.target` fits nothing in the model, or the adapter has experts and dropout.
    """
    experts = list_expert_weights(model)
    modules: str | list[str]
    if takes_all(lora):
        modules = list_linear(model)
    else:
        modules, experts = match_targets(model, lora.target, experts)
    if experts and lora.dropout:
        raise InputError(
            f"lora.dropout: expected 0, since the adapter includes the weights of experts ({experts[0]} and others), "
            f"found {lora.dropout}; set it to 0, or lora.target to a list of other modules"
        )
    return modules, experts


def check_adapted(adapted: Any, target: Sequence[str], modules: Sequence[str], experts: Sequence[str]) -> None:
    """Check that PEFT adapts the named modules and no others.

    For mixtures of experts that older versions of transformers stored otherwise, PEFT takes names such as `down_proj`
    for the experts' weights, wherever they are.

    Raises:
        InputError: names a module with an adapter that was not named, or a named one without.
    """
    wanted = {module for module in modules if any(f".{module}".endswith(f".{name}") for name in target)}
    wanted |= {weight.rpartition(".")[0] for weight in experts}
    base = adapted.get_base_model()
    parts = [name.partition(".lora_") for name, _ in base.named_parameters()]
    found = {module.replace(".base_layer", "") for module, lora, _ in parts if lora}
    for kind, names in (("lacks", wanted - found), ("also adapts", found - wanted)):
        if names:
            raise InputError(
                f"lora.target: expected an adapter of {', '.join(target)}, but PEFT's {kind} {min(names)} in "
                f"{type(base).__name__}; name other modules, or all"
            )


def list_linear(model: Any) -> str | list[str]:
    """The linear layers for `lora.target: all`: PEFT's own choice, or names if that has layers that it cannot adapt.

    Those are subclasses of a linear layer with other outputs, such as routers, and in models with Mamba layers the
    projections that their kernels read directly.
    """
    head = model.get_output_embeddings()
    linear = [(name, one) for name, one in model.named_modules() if isinstance(one, LINEAR) and one is not head]
    is_mamba = model.config.model_type in MAMBA_TYPES
    fit = [
        name
        for name, one in linear
        if is_plain_linear(one) and not (is_mamba and name.rpartition(".")[2] in MAMBA_MODULES)
    ]
    return "all-linear" if len(fit) == len(linear) else fit


def is_plain_linear(layer: Any) -> bool:
    """Whether a linear layer maps (batch, length, inputs) to (batch, length, outputs), as an adapter expects."""
    if type(layer) in LINEAR:
        return True
    weight = layer.weight
    try:
        found = layer(torch.zeros(1, 2, layer.in_features, dtype=weight.dtype, device=weight.device))
    except ERRORS:
        return False
    return isinstance(found, torch.Tensor) and found.shape == (1, 2, layer.out_features)


def match_targets(model: Any, target: Sequence[str], experts: list[str]) -> tuple[list[str], list[str]]:
    """The names of a list `lora.target` that fit modules, and the weights of experts that the others fit.

    Raises:
        InputError: a name fits neither; names it.
    """
    modules = [name for name, _ in model.named_modules()]
    chosen_modules: list[str] = []
    chosen_experts: set[str] = set()
    for name in target:
        found = [weight for weight in experts if f".{weight}".endswith(f".{name}")]
        chosen_experts.update(found)
        if any(f".{module}".endswith(f".{name}") for module in modules):
            chosen_modules.append(name)
        elif not found:
            kinds = sorted({module.rpartition(".")[2] for module, one in model.named_modules() if is_matrix(one)})
            kinds += sorted({weight.rpartition(".")[2] for weight in experts})
            raise InputError(f"lora.target: expected names among {', '.join(kinds)}, found {name!r}")
    return chosen_modules, sorted(chosen_experts)


def is_matrix(module: torch.nn.Module) -> bool:
    """Whether a module has a weight matrix of its own."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 2


def list_expert_weights(model: Any) -> list[str]:
    """Names of the weights of experts that are stacked to (experts, rows, columns), which are no linear layers."""
    return sorted(
        f"{name}.{key}"
        for name, module in model.named_modules()
        if "expert" in f"{name} {type(module).__name__}".lower()
        for key, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3
    )


def list_plain_weights(model: Any) -> list[str]:
    """The layers' weight matrices that have no adapter; the layers' numbers are left out."""
    names = [name for name, weight in model.get_base_model().named_parameters() if weight.dim() > 1]
    plain = [name for name in names if "lora_" not in name and ".base_layer." not in name]
    return sorted({re.sub(r"^.*?\.\d+\.", "", name) for name in plain if re.search(r"\.\d+\.", name)})
