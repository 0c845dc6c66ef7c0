"""Options of exported models."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from distill.common.options import add_options, option
from distill.models.options import DeviceOptions, ModelOptions


@dataclass(frozen=True)
class CardOptions:
    """What a model card states beyond what the workflow knows."""

    license: str | None = option(
        "License of the models, by its identifier on the Hugging Face hub, such as `apache-2.0`.",
        None,
        minLength=1,
        when="Before you publish a model.",
    )
    datasets: list[str] = option(
        "Hub ids of the datasets that the raw records come from.",
        [],
        items={"minLength": 1},
        when="Before you publish a model.",
    )
    language: list[str] = option(
        "Languages of the answers, by their ISO 639 codes.",
        [],
        items={"pattern": "^[a-z]{2,3}$"},
        when="Before you publish a model.",
    )


@dataclass(frozen=True)
class PublishOptions:
    """Where `snakemake publish` uploads exported models to."""

    push_to: str | None = option(
        "Repository on the Hugging Face hub of each exported model, with `{student}`, `{category}` and `{variant}` for "
        "its names. Without `{variant}`, `-VARIANT` follows the name of each variant but `full`.",
        None,
        pattern=r"^[^/]+/[^/]+$",
        when="`OWNER/{student}-{category}` to publish models with `snakemake … publish`, which no whole run does.",
    )
    push_private: bool = option(
        "Whether a new repository is private. With `true`, nothing is uploaded to a public one.",
        True,
        when="`false` to publish for everybody.",
    )


@dataclass(frozen=True)
class CompressionOptions:
    """How LLM Compressor quantizes the variants `gptq` and `fp8`."""

    calibration_records: int = option(
        "Records of the train split on which `gptq` calibrates.",
        256,
        minimum=1,
        when="More for a wide range of prompts; the time grows with them.",
    )
    quantizer: str | None = option(
        "Python of an environment with the package llmcompressor; null finds that of `make setup-quantize`.",
        None,
        minLength=1,
        changes_result=False,
        when="LLM Compressor is installed elsewhere.",
    )


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the scripts that export a student: --student, --out, --dtype, --device."""
    parser.add_argument("--student", required=True, help="folder of the trained model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the exported model to")
    add_options(parser, ModelOptions, only=["dtype"])
    add_options(parser, DeviceOptions)
