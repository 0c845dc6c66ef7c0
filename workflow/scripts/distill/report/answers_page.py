"""The HTML page of a category's answers side by side: fixed questions, then test prompts, with a column per model.

Prompts and answers are data: they are escaped, and the page's content security policy allows its own script and style
only. The page is a single file that loads nothing else.
"""

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from distill.common.errors import InputError, raise_problems
from distill.common.files import read_jsonl, write_atomically
from distill.common.names import TEACHER
from distill.evaluation.prediction_files import FIELDS, check_same_records, find_problems
from distill.evaluation.record_choice import choose_records
from distill.evaluation.score_table import get_owner, is_base_of, order_models
from distill.records.conversations import format_turns

TEMPLATES = Path(__file__).resolve().parents[3] / "report"
STYLE = TEMPLATES / "answers.css"
PARTS = (TEMPLATES / "answers.html.j2", STYLE, TEMPLATES / "answers.js")
TONES = 6  # colours of students in answers.css; tone 0 is the teacher's
REFERENCE = "(reference)"  # names of models have no brackets

HAN, KANA, HANGUL = (re.compile(chars) for chars in ("[\u3400-\u9fff]", "[\u3041-\u30fe]", "[\uac00-\ud7a3]"))
NOT_HTML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")  # not allowed in HTML
MAX_NLL = 690.0  # nats per token; the perplexity of a larger value overflows a float

TEXTS = {name: ("a string", lambda value: isinstance(value, str)) for name in ("system", "prompt")}
ASKED = TEXTS | {name: FIELDS[name] for name in ("uid", "prediction", "finish_reason")}

Record = dict[str, Any]


class Column(NamedTuple):
    """The column of a model or of the reference.

    Attributes:
        key: name of the model, or REFERENCE.
        name: heading.
        role: remark beside the heading.
        tone: number of its colour in answers.css.
        is_base: whether the model is a student before distillation.
    """

    key: str
    name: str
    role: str
    tone: int
    is_base: bool


class Answer(NamedTuple):
    """One column's answer to one prompt; the page filters by `flags`."""

    column: Column
    text: str
    flags: list[str]
    warnings: list[str]
    facts: list[str]


class Card(NamedTuple):
    """One prompt with its answers."""

    anchor: str
    system: str
    prompt: str
    label: float | None
    answers: list[Answer]


def read_answers(paths: Sequence[str | PathLike[str]], suffix: str) -> dict[str, list[Record]]:
    """Read the records of each model, in the order of its file.

    Args:
        paths: files `…/{model}/{category}{suffix}`, one per model.
        suffix: `.predictions.jsonl` or `.questions.jsonl`.

    Raises:
        InputError: a record is broken, two files belong to one model, or the files hold different prompts.
    """
    fields = ASKED if suffix == ".questions.jsonl" else FIELDS | TEXTS
    problems: list[str] = []
    found: dict[str, list[Record]] = {}
    for path in paths:
        lines = list(read_jsonl(path))
        problems += find_problems(path, lines, fields)
        model = Path(path).absolute().parent.name
        if not Path(path).name.endswith(suffix) or model in found:
            raise InputError(f"{path}: expected one file MODEL/CATEGORY{suffix} per model")
        found[model] = [record for _, record in lines]
    raise_problems(problems, "answers")
    check_same_records(dict(zip(map(str, paths), found.values(), strict=True)))
    return found


def order_columns(models: Sequence[str]) -> list[Column]:
    """The columns: reference, teacher, then the students, each preceded by its `_base`.

    A student's replicas, its `_base` and its variants share its colour, as in the figures.
    """
    models = order_models(models)
    owners = [get_owner(model, models) for model in models]
    # sorted() keeps the order of equals: only a `_base` moves, to the start of its student's models.
    ordered = sorted(models, key=lambda model: (owners.index(get_owner(model, models)), not is_base_of(model, models)))
    students = list(dict.fromkeys(owner for owner in owners if owner != TEACHER))
    columns = [Column(REFERENCE, "reference", "used for the scores", 0, False)]
    for model in ordered:
        is_base = is_base_of(model, models)
        role = "before distillation" if is_base else ""
        tone = 0 if model == TEACHER else students.index(get_owner(model, models)) % TONES + 1
        columns.append(Column(model, model, role, tone, is_base))
    return columns


def guess_language(text: str) -> str:
    """The language tag that selects the right glyphs: `zh`, `ja` or `ko` if a tenth of the text is in its script.

    Any other text has the empty tag, which means unknown.
    """
    han, kana, hangul = (len(script.findall(text)) for script in (HAN, KANA, HANGUL))
    if 10 * (han + kana + hangul) < len(text) or not text:
        return ""
    if hangul > han + kana:
        return "ko"
    return "ja" if 10 * kana > han else "zh"


def format_perplexity(record: Record) -> str | None:
    """The model's perplexity of the reference as text; None if it was not measured."""
    if not record.get("nll_tokens") or record.get("nll") is None:
        return None
    mean = record["nll"] / record["nll_tokens"]
    return f"{math.exp(mean):.3g}" if mean < MAX_NLL else "over 1e+299"


def build_answer(column: Column, record: Record, is_tested: bool) -> Answer:
    """A model's answer with its warnings and facts.

    Args:
        column: the model's column.
        record: the prediction.
        is_tested: whether the prompt is a test prompt; fixed questions have no reference.
    """
    flags, warnings, facts = [], [], []
    if record["finish_reason"] == "length":
        flags.append("cut")
        warnings.append("truncated")
    if is_tested and not record["usable"]:
        flags.append("unusable")
        warnings.append(f"not usable: {record.get('problem') or 'no reason given'}")
    if (tokens := record.get("generated_tokens")) is not None:
        facts.append(format_tokens(tokens))
    if is_tested and record["parsed_value"] is not None:
        facts.append(f"value {record['parsed_value']:g}")
    if is_tested and record["prediction"] == record["reference"]:
        facts.append("same as the reference")
    if is_tested and (perplexity := format_perplexity(record)):
        facts.append(f"perplexity of the reference {perplexity}")
    if (found := record.get("pairwise")) and found["against"] != column.key:
        facts.append(f"judge: {format_verdict(found)}")
    return Answer(column, show(record["prediction"]), flags, warnings, facts)


def format_verdict(found: Record) -> str:
    """What a judge says of an answer, from a record of judge_pairs.py."""
    if found["score"] is None:
        return "unreadable"
    if found["is_contradictory"]:
        return f"contradictory about {found['against']}'s answer"
    if not found["verdicts"]:
        return f"not asked, same as {found['against']}'s answer"
    words = "as good as" if found["score"] == 0.5 else "better than" if found["score"] > 0.5 else "worse than"
    return f"{words} {found['against']}'s answer"


def format_tokens(count: int) -> str:
    """A number of tokens as text."""
    return f"{count:,} token{'' if count == 1 else 's'}"


def show(text: str) -> str:
    """The text with � in place of characters that HTML does not allow: control characters and lone surrogates."""
    return NOT_HTML.sub("\ufffd", text)


def build_cards(
    answers_by_model: Mapping[str, Sequence[Record]], columns: Sequence[Column], chosen: Sequence[Record], kind: str
) -> list[Card]:
    """A card for each chosen record.

    Args:
        answers_by_model: from `read_answers`.
        columns: from `order_columns`.
        chosen: records of any one model.
        kind: `question` or `test`; also the prefix of the cards' anchors.
    """
    is_tested = kind == "test"
    by_uid = {model: {record["uid"]: record for record in records} for model, records in answers_by_model.items()}
    cards = []
    for number, record in enumerate(chosen, start=1):
        answers = []
        for column in columns:
            if column.key in by_uid:
                answers.append(build_answer(column, by_uid[column.key][record["uid"]], is_tested))
            elif column.key == REFERENCE and is_tested:
                answers.append(Answer(column, show(record["reference"]), [], [], []))
        anchor = f"{kind}-{record['uid'] if record['uid'].isalnum() else number}"
        cards.append(Card(anchor, show(record["system"]), show(format_turns(record)), record.get("label"), answers))
    return cards


def render_page(category: str, tests: dict[str, list[Record]], questions: dict[str, list[Record]], most: int) -> str:
    """The page as HTML.

    Args:
        category: name of the category.
        tests: predictions by model, from `read_answers`.
        questions: answers to the fixed questions by model, from `read_answers`; may be empty.
        most: maximum number of test prompts on the page.
    """
    columns = order_columns(list(tests))
    predictions = next(iter(tests.values()))
    chosen = choose_records(predictions, most)
    asked = next(iter(questions.values()), [])
    if not chosen:
        columns = [column for column in columns if column.key != REFERENCE]
    template, css, script = PARTS[0].name, *(path.read_text(encoding="utf-8") for path in PARTS[1:])
    return render_template(
        template,
        css,
        script,
        category=category,
        columns=columns,
        questions=build_cards(questions, columns, asked, "question"),
        tests=build_cards(tests, columns, chosen, "test"),
        total=len(predictions),
        has_unusable=any(not record["usable"] for records in tests.values() for record in records),
    )


def render_template(name: str, css: str, script: str = "", **values: Any) -> str:
    """A page as HTML, with values that are escaped and a style and a script that are not.

    Args:
        name: template in `workflow/report/`.
        css: style sheet.
        script: JavaScript.
        values: further variables of the template.
    """
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(
        language=guess_language,
        policy=build_policy(css, script),
        css=Markup(css),
        script=Markup(script),
        **values,
    )


def build_policy(css: str, script: str) -> str:
    """Content-Security-Policy that allows this style and this script only, and loads nothing."""
    digests = {name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for name, text in
               (("style", css), ("script", script))}  # fmt: skip
    allowed = "; ".join(f"{name}-src 'sha256-{digest}'" for name, digest in digests.items())
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def write_page(path: str | PathLike[str], html: str) -> None:
    """Write the page atomically."""
    with write_atomically(path) as file:
        file.write(html)
