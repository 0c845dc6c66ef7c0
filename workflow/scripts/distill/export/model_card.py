"""The README.md of an exported model: a Hugging Face model card with scores and usage."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from distill.common.errors import InputError
from distill.common.files import write_atomically
from distill.common.names import POOLED
from distill.common.variants import VARIANTS, Variant
from distill.evaluation.metrics import list_metrics
from distill.evaluation.score_table import Score, order_models
from distill.export.serving import list_servers
from distill.report.score_text import choose_decimals, format_number

PORT = 8000


class Exported(NamedTuple):
    """The exported model that a card describes.

    Attributes:
        name: name of the student.
        category: category that it was trained on, POOLED for all.
        variant: name in VARIANTS.
        evaluated: its name in output/evaluation.
        base_model: the student's model in the configuration: a hub id, a local folder, or None for copied layers.
        teacher: the teacher's model in the configuration.
        license, datasets, language: metadata for the hub, as configured.
        config_digest: digest of the settings that determine the student.
    """

    name: str
    category: str
    variant: str
    evaluated: str
    base_model: str | None
    teacher: str
    license: str | None
    datasets: list[str]
    language: list[str]
    config_digest: str


def is_hub_id(model: str | None) -> bool:
    """Whether a model is given by `owner/name` and not by a local folder."""
    if model is None or model.count("/") != 1 or model.startswith((".", "/", "~")) or ":" in model:
        return False
    return not Path(model).exists()


def get_metric_names() -> dict[str, str]:
    """Name and heading of the metrics that a card shows."""
    return {metric.name: metric.card for metric in list_metrics().values() if metric.card}


def describe_category(category: str) -> str:
    """The category in running text."""
    return "all categories" if category == POOLED else f"the category `{category}`"


def build_results(exported: Exported, scores: Sequence[Score]) -> list[EvalResult]:
    """The scores of the exported model as evaluation results for the metadata."""
    names = get_metric_names()
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=exported.datasets[0] if exported.datasets else exported.category,
            dataset_name=f"held-out prompts of {exported.category}",
            dataset_split="test",
            metric_type=score.metric,
            metric_name=names[score.metric],
            metric_value=score.value,
        )
        for score in scores
        if score.model == exported.evaluated and score.value is not None and score.metric in names
    ]


def build_metadata(exported: Exported, scores: Sequence[Score]) -> ModelCardData:
    """Build the metadata of a card."""
    base = next((model for model in (exported.base_model, exported.teacher) if is_hub_id(model)), None)
    variant = VARIANTS[exported.variant]
    return ModelCardData(
        model_name=f"{exported.name} {exported.category} {exported.variant}",
        base_model=base,
        base_model_relation=("quantized" if variant.is_quantized else "finetune") if base else None,
        license=exported.license,
        datasets=exported.datasets or None,
        language=exported.language or None,
        library_name=variant.library,
        pipeline_tag="text-generation",
        tags=["distillation", "stillhouse", *([exported.variant] if variant.is_quantized else [])],
        eval_results=build_results(exported, scores) or None,
    )


def read_training(path: Path) -> str:
    """Read the card that the training wrote, without metadata and title.

    Raises:
        InputError: the file is missing or is not such a card.
    """
    text = ModelCard.load(path).text.strip() if path.is_file() else ""
    if not text.startswith("# "):
        raise InputError(f"{path}: expected the card of a training, found {'another text' if text else 'no file'}")
    return text.partition("\n")[2].strip()


def format_scores(scores: Sequence[Score]) -> str:
    """A Markdown table with one row per model and one column per metric."""
    models = order_models(score.model for score in scores)
    by_key = {(score.model, score.metric): score for score in scores}
    names = get_metric_names()
    metrics = [metric for metric in names if any((model, metric) in by_key for model in models)]
    decimals = choose_decimals(scores)
    lines = [["model", *(names[metric] for metric in metrics), "n"], ["---", *["---:"] * (len(metrics) + 1)]]
    for model in models:
        cells = [format_cell(by_key.get((model, metric)), decimals.get(metric, 1)) for metric in metrics]
        lines.append([f"`{model}`", *cells, str(max(score.n for score in scores if score.model == model))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_cell(score: Score | None, decimals: int) -> str:
    """A score with its spread over seeds, and its confidence interval in brackets, if it has them."""
    if score is None or score.value is None:
        return "–"
    places = 3 if list_metrics()[score.metric].is_percentage else decimals
    numbers = (score.value, score.ci_low, score.ci_high, score.seed_sd)
    value, low, high, spread = (format_number(x, places) for x in numbers)
    value += f" ± {spread}" if score.seed_sd is not None else ""
    return value if score.ci_low is None else f"{value} [{low}, {high}]"


def explain_means(scores: Sequence[Score]) -> str:
    """A sentence, after a space, that explains a mean over seeds among the scores; empty without one."""
    seeds = {score.model: score.seeds for score in scores if score.seeds > 1}
    return "".join(
        f" `{model}` is the mean over\n{number} trainings of this student, each with another seed, with their standard "
        "deviation after ±."
        for model, number in seeds.items()
    )


def format_usage(variant: Variant) -> str:
    """How to load and serve FOLDER."""
    servers = ["transformers serve FOLDER"] if variant.library == "transformers" else []
    servers += list_servers(variant, "FOLDER", PORT)
    return "\n".join(
        [
            "Replace `FOLDER` with the path of this folder. To load the model with transformers:",
            f"\n```python\n{variant.load_code}\n```\n",
            "To serve it with the OpenAI API, use one of these commands:",
            "\n```",
            *servers,
            "```",
        ]
    )


def write_card(exported: Exported, training: Path, scores: Sequence[Score], out: Path) -> None:
    """Write the model card, after checking that its metadata can be read back.

    Args:
        exported: the model.
        training: README.md of the trained student.
        scores: scores in the category of the teacher, the student before and after distillation, and this variant.
        out: file to write.

    Raises:
        InputError: `training` is missing or is not a card of a training.
    """
    metadata = build_metadata(exported, scores).to_yaml(line_break="\n")
    text = f"---\n{metadata}\n---\n\n{render_body(exported, read_training(training), scores)}"
    ModelCard(text)  # raises an error if the hub could not read it
    with write_atomically(out) as file:
        file.write(text)


def render_body(exported: Exported, training: str, scores: Sequence[Score]) -> str:
    """The text of the card below its metadata; `training` is the text from `read_training`."""
    variant, category = VARIANTS[exported.variant], describe_category(exported.category)
    return f"""# {exported.name} ({exported.category}, {exported.variant})

A language model distilled from `{exported.teacher}` on {category}.

Variant `{exported.variant}`: {variant.summary}

{training}

## Evaluation

Scores on held-out prompts of {category}, with 95 % bootstrap confidence intervals in brackets. BLEU, chrF, ROUGE and
perplexity are computed against the teacher's answers. `{exported.evaluated}` is this model. A name that ends in `_base`
is that of a student before distillation. `n` is the number of prompts.{explain_means(scores)}

{format_scores(scores)}

## Usage

{format_usage(variant)}

Created with Stillhouse. Configuration digest: `{exported.config_digest}`.
"""
