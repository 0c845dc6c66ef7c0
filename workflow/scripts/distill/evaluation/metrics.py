"""The registry of metrics: what each group computes, and how tables, figures and model cards show it.

To add a metric, add it to a group in `GROUPS`, or add a group with its load function. The command line, the
configuration, metrics.json, metrics.csv, the printed tables, the figures, the comparisons and the model cards all read
this registry. Snakemake's own process imports this module too: numpy, sacrebleu and the like are imported inside the
load functions only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill.common.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from distill.evaluation.bootstrap import Statistic

Records = Sequence[dict[str, Any]]
Columns = dict[str, "NDArray[Any]"]  # by name, each of shape (records, …)


@dataclass(frozen=True)
class Measure:
    """How a group's metrics are computed: texts are counted once, and everything after that works on the counts.

    Attributes:
        count: returns the columns of records, which hold all that `build` needs and no text. The arguments are records
            from `load_predictions` and sacreBLEU's tokenizer. Columns whose inputs are missing, such as likelihoods,
            are left out. Columns of several categories can be joined.
        build: returns the statistics, by metric name, from columns; without those whose columns are missing.
        describe: returns the signature for metrics.json, from sacreBLEU's tokenizer; None writes none.
    """

    count: Callable[[Records, str], Columns]
    build: Callable[[Columns], Mapping[str, Statistic]]
    describe: Callable[[str], str] | None = None


@dataclass(frozen=True)
class Metric:
    """One score and how it is shown.

    Attributes:
        name: key in metrics.json, metrics.csv and comparisons.csv.
        heading: column heading in the printed tables; None leaves the metric out of them.
        title: panel title in the figures; None leaves the metric out of them.
        card: name in model cards; None leaves the metric out of them.
        is_percentage: the printed tables show 100 times the value.
        decimals: digits after the decimal point; None keeps three significant digits of the median over all models.
        shows_interval: the printed tables show the confidence interval, if the line is wide enough.
        has_own_n: the metric rests on some records only, and the printed tables show their number beside it.
        drop_order: position among the columns that a narrow terminal drops, 1 first; None keeps the column.
        replaced_by: metric that replaces this one in the printed tables if both were computed.
        same_as: metric with the same values; the figures show only that one if both were computed.
        limit: the figures' axis runs from 0 to this value; None fits the axis to the values.
        starts_at_0: the figures' axis starts at 0.
        can_be_log: the figures use a logarithmic axis if the values lie far apart.
        is_task: the metric is that of a benchmark task, over its documents instead of the test records.
        is_per_token: the metric is a mean over the tokens of the references, as the model's own tokenizer splits them.
            Two models whose tokenizers split them differently are not compared by it.
    """

    name: str
    heading: str | None
    title: str | None
    card: str | None
    is_percentage: bool = False
    decimals: int | None = 1
    shows_interval: bool = False
    has_own_n: bool = False
    drop_order: int | None = None
    replaced_by: str | None = None
    same_as: str | None = None
    limit: float | None = None
    starts_at_0: bool = False
    can_be_log: bool = False
    is_task: bool = False
    is_per_token: bool = False


@dataclass(frozen=True)
class MetricGroup:
    """Metrics that are computed together and chosen by one name in `evaluation.metrics`.

    Attributes:
        description: plain sentences for the configuration reference.
        metrics: in the order of tables and figures.
        load: imports what the group needs and returns how its metrics are computed.
        needs_likelihoods: predict_answers.py has to measure the likelihood of the references.
        needs_judgements: judge_answers.py has to measure the teacher's likelihood of the predictions.
        needs_verdicts: judge_pairs.py has to ask a judge, which `evaluation.pairwise` configures.
        needs_answer_key: the group is computed only with an answer key.
    """

    description: str
    metrics: tuple[Metric, ...]
    load: Callable[[], Measure]
    needs_likelihoods: bool = False
    needs_judgements: bool = False
    needs_verdicts: bool = False
    needs_answer_key: bool = False


def load_answer() -> Measure:
    """Coverage, and errors of the values against the labels."""
    from distill.evaluation.value_metrics import build_values, count_values

    return Measure(count_values, build_values)


def load_ppl() -> Measure:
    """Perplexity, bits per byte and agreement on the references."""
    from distill.evaluation.likelihood_metrics import build_ppl, count_ppl

    return Measure(count_ppl, build_ppl)


def load_fdistill() -> Measure:
    """Likelihood and coverage of f-DISTILL."""
    from distill.evaluation.likelihood_metrics import build_fdistill, count_fdistill

    return Measure(count_fdistill, build_fdistill)


def load_bleu() -> Measure:
    """Corpus BLEU."""
    from distill.evaluation.sacrebleu_metrics import build_bleu, count_bleu, get_bleu_signature

    return Measure(count_bleu, build_bleu, get_bleu_signature)


def load_chrf() -> Measure:
    """Corpus chrF."""
    from distill.evaluation.sacrebleu_metrics import build_chrf, count_chrf, get_chrf_signature

    return Measure(count_chrf, build_chrf, get_chrf_signature)


def load_rouge() -> Measure:
    """ROUGE-1, ROUGE-2 and ROUGE-L."""
    from distill.evaluation.text_metrics import build_rouge, count_rouge

    return Measure(count_rouge, build_rouge)


def load_shape() -> Measure:
    """Length, repetition and distinct n-grams of the answers."""
    from distill.evaluation.text_metrics import build_shape, count_shape

    return Measure(count_shape, build_shape)


def load_pairwise() -> Measure:
    """Win rate by a judge's verdicts on pairs of answers."""
    from distill.evaluation.pairwise_metrics import build_pairwise, count_pairwise

    return Measure(count_pairwise, build_pairwise)


# In the order of tables and figures.
GROUPS: dict[str, MetricGroup] = {
    "answer": MetricGroup(
        description="Coverage, which is the share of usable answers, and errors of their values against the labels. "
        "Needs an answer key.",
        metrics=(
            Metric("coverage", "coverage %", "coverage (share)", "coverage (share of answers in the format)",
                   is_percentage=True, shows_interval=True, limit=1),
            Metric("mae", "MAE", "MAE", "mean absolute error", decimals=None, shows_interval=True, has_own_n=True,
                   starts_at_0=True, can_be_log=True),
            Metric("rmse", None, None, None),
            Metric("r2", None, None, None),
            Metric("ic", None, "IC (Spearman)", None),
            Metric("direction_accuracy", None, "direction accuracy", None, limit=1),
        ),
        load=load_answer,
        needs_answer_key=True,
    ),
    "ppl": MetricGroup(
        description="Perplexity of the teacher's answers under the model, the same likelihood in bits per byte of "
        "their text, and agreement, which is the share of their tokens that the model ranks first.",
        metrics=(
            Metric("ppl", "PPL", "perplexity", "perplexity", decimals=None, can_be_log=True, is_per_token=True),
            Metric("bits_per_byte", "bits/byte", "bits per byte", "bits per byte", decimals=3, drop_order=4,
                   starts_at_0=True),
            Metric("agreement", "agreement %", "agreement (share)", None, is_percentage=True, replaced_by="coverage",
                   limit=1, is_per_token=True),
        ),
        load=load_ppl,
        needs_likelihoods=True,
    ),
    "pairwise": MetricGroup(
        description="Win rate against one of the models by a judge's verdicts, the share of contradictory verdicts, "
        "which show a preference for a position, and the share of unreadable ones. It needs `evaluation.pairwise`, and "
        "is computed whenever that is set.",
        metrics=(
            Metric("pairwise_win_rate", "win %", "pairwise win rate", "pairwise win rate (0.5 is a draw)",
                   is_percentage=True, shows_interval=True, has_own_n=True, limit=1),
            Metric("pairwise_contradictory", "contradictory %", None, None, is_percentage=True, drop_order=5),
            Metric("pairwise_unreadable", None, None, None),
        ),
        load=load_pairwise,
        needs_verdicts=True,
    ),
    "bleu": MetricGroup(
        description="Corpus BLEU against the teacher's answers.",
        metrics=(Metric("bleu", "BLEU", "BLEU", "BLEU", limit=100),),
        load=load_bleu,
    ),
    "chrf": MetricGroup(
        description="Corpus chrF2, an F-score of character n-grams, against the teacher's answers.",
        metrics=(Metric("chrf", "chrF", "chrF", "chrF", limit=100),),
        load=load_chrf,
    ),
    "rouge": MetricGroup(
        description="ROUGE-1, ROUGE-2 and ROUGE-L F1 against the teacher's answers.",
        metrics=(
            Metric("rouge1", None, None, "ROUGE-1 F1"),
            Metric("rouge2", None, None, "ROUGE-2 F1"),
            Metric("rougeL", "ROUGE-L", "ROUGE-L F1", "ROUGE-L F1", limit=100),
        ),
        load=load_rouge,
    ),
    "fdistill": MetricGroup(
        description="The two measures of f-DISTILL: likelihood, which is the model's perplexity of the teacher's "
        "answers, and coverage, which is the teacher's perplexity of the model's answers.",
        metrics=(
            Metric("fdistill_coverage", "PPL by teacher", "fdistill coverage\n(perplexity)", None, decimals=None,
                   can_be_log=True),
            Metric("fdistill_likelihood", None, "fdistill likelihood\n(perplexity)", None, same_as="ppl",
                   can_be_log=True, is_per_token=True),
        ),
        load=load_fdistill,
        needs_likelihoods=True,
        needs_judgements=True,
    ),
    "shape": MetricGroup(
        description="Length ratio, repetition and distinct n-grams (in samples of 20) of the model's answers.",
        metrics=(
            Metric("length_ratio", "length ratio", "length (ratio)", None, decimals=2, starts_at_0=True),
            Metric("repetition", "repetition %", "repetition (share)", None, is_percentage=True, drop_order=3,
                   starts_at_0=True),
            Metric("distinct1", "distinct-1 %", "distinct-1 (share)", None, is_percentage=True, drop_order=1,
                   starts_at_0=True),
            Metric("distinct2", "distinct-2 %", "distinct-2 (share)", None, is_percentage=True, drop_order=2,
                   starts_at_0=True),
        ),
        load=load_shape,
    ),
}  # fmt: skip
# Order in metrics.json and metrics.csv, fixed since the first version; other groups follow.
FILE_ORDER = ("answer", "ppl", "fdistill", "bleu", "rouge", "chrf", "shape")


def needs_likelihoods(groups: Iterable[str]) -> bool:
    """Whether one of the groups needs the likelihood of the references, which predict_answers.py measures."""
    return any(GROUPS[group].needs_likelihoods for group in groups)


def needs_judgements(groups: Iterable[str]) -> bool:
    """Whether one of the groups needs the teacher's likelihood of the answers, which judge_answers.py measures."""
    return any(GROUPS[group].needs_judgements for group in groups)


def needs_verdicts(groups: Iterable[str]) -> bool:
    """Whether one of the groups needs a judge's verdicts, which judge_pairs.py asks for."""
    return any(GROUPS[group].needs_verdicts for group in groups)


def describe_task(name: str) -> Metric:
    """The metric of a benchmark task, `TASK/METRIC` or `TASK/METRIC/FILTER` with the names of lm-evaluation-harness."""
    task, _, metric = name.partition("/")
    heading, title, card = f"{task} {metric}", f"{task}\n({metric})", f"{task} ({metric})"
    return Metric(name, heading, title, card, decimals=3, drop_order=10, starts_at_0=True, is_task=True)


def list_metrics(names: Iterable[str] = ()) -> dict[str, Metric]:
    """All declared metrics by name, in the order of tables and figures, and those of benchmark tasks among `names`."""
    declared = {metric.name: metric for group in GROUPS.values() for metric in group.metrics}
    return declared | {name: describe_task(name) for name in names if "/" in name}


def select_metrics(names: Iterable[str]) -> list[Metric]:
    """The metrics of these names, each once, in the order of tables and figures.

    Raises:
        InputError: no group declares one of the names.
    """
    found = dict.fromkeys(names)
    declared = list_metrics(found)
    if unknown := sorted(found.keys() - declared.keys()):
        raise InputError(f"metric {unknown[0]}: expected one of {', '.join(declared)}")
    return [metric for metric in declared.values() if metric.name in found]


def select_printed(names: Iterable[str]) -> list[Metric]:
    """The metrics among these names that the printed tables show; see `select_metrics`."""
    found = dict.fromkeys(names)
    return [metric for metric in select_metrics(found) if metric.heading and metric.replaced_by not in found]


def select_drawn(names: Iterable[str]) -> list[Metric]:
    """The metrics among these names that the figures show; see `select_metrics`.

    Raises:
        InputError: the figures show none of them, or no group declares one of the names.
    """
    found = dict.fromkeys(names)
    drawn = [metric for metric in select_metrics(found) if metric.title and metric.same_as not in found]
    if not drawn:
        names = [metric.name for metric in list_metrics().values() if metric.title]
        raise InputError(f"no metric to draw: expected at least one of {', '.join(names)}")
    return drawn
