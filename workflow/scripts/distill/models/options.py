"""Options that say which model is loaded, and how."""

from dataclasses import dataclass
from typing import Literal

from distill.common.options import COUNT, option

DTYPES = ("bfloat16", "float16", "float32")
QUANTIZATIONS = ("none", "int8", "nf4")
DEVICES = ("auto", "cpu", "cuda")
TEMPLATE_DATE = "2024-07-26"  # the date that the templates of Llama 3 have where they know no other


@dataclass(frozen=True)
class ModelOptions:
    """A model, its adapter, and the precision that it is loaded in."""

    model: str = option(
        "Model to load: `hf:OWNER/NAME`, `modelscope:OWNER/NAME`, a local folder, or a Hugging Face hub id.",
        minLength=1,
        when="Always: name your own model.",
    )
    adapter: str | None = option(
        "LoRA checkpoint to apply to the model. In a configuration the path may contain `{category}`.",
        None,
        minLength=1,
        when="Your teacher is a LoRA checkpoint, for example `checkpoints/{category}` with one per category.",
    )
    dtype: str = option(
        "Data type of the weights.",
        "bfloat16",
        choices=DTYPES,
        when="`float16` on GPUs older than Ampere, `float32` on a CPU.",
    )
    quantization: str = option(
        "Quantization of the weights by bitsandbytes: none, 8 bits or 4 bits.",
        "none",
        choices=QUANTIZATIONS,
        when="`int8` to fit a 7B teacher beside a student on a 40 GB GPU, `nf4` if that is still too large.",
    )
    template_arguments: dict[str, str | bool | int | float] = option(
        "Further variables of the model's chat template, by name.",
        {},
        when="The template has a switch, for example `{enable_thinking: false}` with Qwen3.",
    )


@dataclass(frozen=True)
class TemplateOptions:
    """What all chat templates of an experiment read."""

    template_date: str = option(
        "The day that chat templates read as today's, `YYYY-MM-DD`. It is fixed, so that results do not depend on the "
        "day; most templates do not read it.",
        TEMPLATE_DATE,
        pattern=r"^\d{4}-\d{2}-\d{2}$",
        when="Prompts are about current events, and the template shows the date (Llama 3, SmolLM3, Granite).",
    )


@dataclass(frozen=True)
class DeviceOptions:
    """Where a model runs."""

    device: str = option(
        "Device to run on; `auto` uses a CUDA GPU if there is one.",
        "auto",
        choices=DEVICES,
        changes_result=False,
        when="`cpu` to leave a busy GPU alone.",
    )


@dataclass(frozen=True)
class BatchOptions:
    """How many prompts are generated for at a time."""

    batch_size: int | Literal["auto"] = option(
        "Prompts per batch. `auto` grows with the free memory; any batch is halved if memory runs out.",
        "auto",
        **COUNT,
        changes_result=False,
        when="A number to leave memory for other programs.",
    )
