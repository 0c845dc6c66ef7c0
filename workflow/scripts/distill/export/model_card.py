"""The README.md of an exported model's folder: a Hugging Face model card with its scores beside the others'."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from distill.common.errors import InputError
from distill.common.files import write_atomically
from distill.common.names import FULL
from distill.evaluation.metrics import list_metrics
from distill.evaluation.score_table import Score, order_models
from distill.export.serving import list_alternatives
from distill.report.score_text import choose_decimals, format_number

NAMES = {metric.name: metric.card for metric in list_metrics().values() if metric.card}
SORTS = {
    "full": "in the numbers that it was trained to",
    "nf4": "in 4 bits a weight (nf4 with double quantization, bitsandbytes)",
    "int8": "in 8 bits a weight (LLM.int8, bitsandbytes)",
    "gguf": "as one GGUF file of 8 bits a weight (Q8_0)",
}
PORT = 8000


class Exported(NamedTuple):
    """What a card is about.

    Attributes:
        name: of the student; `category` is what it was trained on, `all` for all.
        evaluated: its name under output/evaluation.
        base_model: as configured: a hub id, a local folder, or None for layers of the teacher.
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
    """Whether a model is named by `owner/name`, and no folder is."""
    if model is None or model.count("/") != 1 or model.startswith((".", "/", "~")) or ":" in model:
        return False
    return not Path(model).exists()


def build_metadata(exported: Exported, scores: Sequence[Score]) -> ModelCardData:
    """The card's metadata, with the scores of this very model as evaluation results."""
    base = next((model for model in (exported.base_model, exported.teacher) if is_hub_id(model)), None)
    results = [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=exported.datasets[0] if exported.datasets else exported.category,
            dataset_name=f"held-out prompts of {exported.category}",
            dataset_split="test",
            metric_type=score.metric,
            metric_name=NAMES[score.metric],
            metric_value=score.value,
        )
        for score in scores
        if score.model == exported.evaluated and score.value is not None and score.metric in NAMES
    ]
    is_quantized = exported.variant != FULL
    return ModelCardData(
        model_name=f"{exported.name} {exported.category} {exported.variant}",
        base_model=base,
        base_model_relation=("quantized" if is_quantized else "finetune") if base else None,
        license=exported.license,
        datasets=exported.datasets or None,
        language=exported.language or None,
        library_name="gguf" if exported.variant == "gguf" else "transformers",
        pipeline_tag="text-generation",
        tags=["distillation", "stillhouse", *([exported.variant] if is_quantized else [])],
        eval_results=results or None,
    )


def read_training(path: Path) -> str:
    """The body of the card that a training wrote, below its title.

    Raises:
        InputError: no such card.
    """
    text = ModelCard.load(path).text.strip() if path.is_file() else ""
    if not text.startswith("# "):
        raise InputError(f"{path}: expected the card of a training, found {'another text' if text else 'no file'}")
    return text.partition("\n")[2].strip()


def format_scores(scores: Sequence[Score]) -> str:
    """A row a model, a column a metric, 95 % intervals in brackets."""
    models = order_models(score.model for score in scores)
    by_key = {(score.model, score.metric): score for score in scores}
    metrics = [metric for metric in NAMES if any((model, metric) in by_key for model in models)]
    decimals = choose_decimals(scores)
    lines = [["model", *(NAMES[metric] for metric in metrics), "n"], ["---", *["---:"] * (len(metrics) + 1)]]
    for model in models:
        cells = [format_score(by_key.get((model, metric)), decimals.get(metric, 1)) for metric in metrics]
        lines.append([f"`{model}`", *cells, str(max(score.n for score in scores if score.model == model))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_score(score: Score | None, decimals: int) -> str:
    """A figure and its interval, where it has one."""
    if score is None or score.value is None:
        return "–"
    places = 3 if list_metrics()[score.metric].is_percentage else decimals
    value, low, high = (format_number(x, places) for x in (score.value, score.ci_low, score.ci_high))
    return value if score.ci_low is None else f"{value} [{low}, {high}]"


def format_use(variant: str) -> str:
    """How the folder is used, from where it lies."""
    others = "\n".join(list_alternatives("FOLDER", PORT, variant == "gguf"))
    if variant == "gguf":
        return f'```\n{others}\n```\n\nIn transformers: `from_pretrained(FOLDER, gguf_file="model.gguf")`.'
    return f"""```python
from transformers import pipeline

chat = pipeline("text-generation", model="FOLDER")
print(chat([{{"role": "user", "content": "…"}}])[0]["generated_text"][-1]["content"])
```

As a server with the OpenAI API: `transformers serve FOLDER`, or

```
{others}
```"""


def write_card(exported: Exported, training: Path, scores: Sequence[Score], out: Path) -> None:
    """Write the card; its metadata has been read back before it is there.

    Args:
        training: the trained student's README.md.
        scores: of the teacher, the student before and after, and this variant, in the category.

    Raises:
        InputError: no card of a training.
    """
    metadata = build_metadata(exported, scores)
    where = "all categories" if exported.category == "all" else f"the category `{exported.category}`"
    body = f"""# {exported.name}, {exported.category}, {exported.variant}

A student of `{exported.teacher}`, distilled on {where}, {SORTS[exported.variant]}.

{read_training(training)}

## Scores

On held-out prompts of {where}; BLEU, chrF, ROUGE and perplexity are against the teacher's answers, with 95 % bootstrap
intervals in brackets. `{exported.evaluated}` is this model, a name ending in `_base` the student before distillation.

{format_scores(scores)}

## Use

{format_use(exported.variant)}

Made by Stillhouse; digest of the configuration: `{exported.config_digest}`.
"""
    text = f"---\n{metadata.to_yaml(line_break=chr(10))}\n---\n\n{body}"
    ModelCard(text)  # raises where the hub would not understand it
    with write_atomically(out) as file:
        file.write(text)
