"""The HTML page of a category's answers side by side: fixed questions, then test prompts, a column a model.

Prompts and answers are data: they are escaped, and the page's policy lets no script or style run but its own. The page
is one file that asks for no other.
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
from distill.evaluation.score_table import is_base, order_models

TEMPLATES = Path(__file__).resolve().parents[3] / "report"
PARTS = tuple(TEMPLATES / f"answers.{suffix}" for suffix in ("html.j2", "css", "js"))
TONES = 6  # colours of students in answers.css; tone 0 is the teacher's
REFERENCE = "(reference)"  # no model's name has brackets


HAN, KANA, HANGUL = (re.compile(chars) for chars in ("[\u3400-\u9fff]", "[\u3041-\u30fe]", "[\uac00-\ud7a3]"))
UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")  # what HTML cannot hold
LARGEST = 690.0  # nats a token whose perplexity a float still holds

TEXTS = {name: ("a string", lambda value: isinstance(value, str)) for name in ("system", "prompt")}
ASKED = TEXTS | {name: FIELDS[name] for name in ("uid", "prediction", "finish_reason")}

Record = dict[str, Any]


class Column(NamedTuple):
    """One model's place on the page, or the reference's."""

    key: str
    name: str
    role: str
    tone: int
    is_base: bool


class Answer(NamedTuple):
    """What one column says to one prompt; `flags` are what the page filters by."""

    column: Column
    text: str
    flags: list[str]
    warnings: list[str]
    facts: list[str]


class Card(NamedTuple):
    """One prompt and its answers."""

    anchor: str
    system: str
    prompt: str
    label: float | None
    answers: list[Answer]


def read_answers(paths: Sequence[str | PathLike[str]], suffix: str) -> dict[str, list[Record]]:
    """Records of each model, in the order of its file; the model is the folder of `…/{model}/{category}{suffix}`.

    Raises:
        InputError: a broken record, two files of one model, or files that do not hold the same prompts.
    """
    fields = ASKED if suffix == ".questions.jsonl" else FIELDS | TEXTS
    problems: list[str] = []
    found: dict[str, list[Record]] = {}
    for path in paths:
        lines = list(read_jsonl(path))
        problems += find_problems(path, lines, fields)
        model = Path(path).absolute().parent.name
        if not Path(path).name.endswith(suffix) or model in found:
            raise InputError(f"{path}: expected one file MODEL/CATEGORY{suffix} a model")
        found[model] = [record for _, record in lines]
    raise_problems(problems, "answers")
    check_same_records(dict(zip(map(str, paths), found.values(), strict=True)))
    return found


def order_columns(models: Sequence[str]) -> list[Column]:
    """The reference, the teacher, then each student behind itself before distillation."""
    models = order_models(models)
    places: list[str] = []
    for model in models:
        if is_base(model, models):  # stands behind its student there
            places.insert(len(places) - 1, model)
        else:
            places.append(model)
    students = [model for model in models if model != TEACHER and not is_base(model, models)]
    columns = [Column(REFERENCE, "reference", "what scores are against", 0, False)]
    for model in places:
        base = is_base(model, models)
        role = "before distillation" if base else ""
        student = model.removesuffix("_base") if base else model
        tone = 0 if model == TEACHER else students.index(student) % TONES + 1
        columns.append(Column(model, model, role, tone, base))
    return columns


def choose_records(records: Sequence[Record], most: int) -> list[Record]:
    """At most `most` records in their order: those whose uid's hash is smallest.

    A record that is added takes the place of one at most.
    """
    ranks = {record["uid"]: hashlib.sha256(record["uid"].encode()).digest() for record in records}
    chosen = set(sorted(ranks, key=ranks.__getitem__)[:most])
    return [record for record in records if record["uid"] in chosen]


def guess_language(text: str) -> str:
    """`zh`, `ja` or `ko` where a tenth of the text is in their scripts, for the right glyphs; else empty, unknown."""
    han, kana, hangul = (len(script.findall(text)) for script in (HAN, KANA, HANGUL))
    if 10 * (han + kana + hangul) < len(text) or not text:
        return ""
    if hangul > han + kana:
        return "ko"
    return "ja" if 10 * kana > han else "zh"


def format_perplexity(record: Record) -> str | None:
    """Perplexity of the reference under the record's model; None where it was not measured."""
    if not record.get("nll_tokens") or record.get("nll") is None:
        return None
    mean = record["nll"] / record["nll_tokens"]
    return f"{math.exp(mean):.3g}" if mean < LARGEST else "over 1e+299"


def build_answer(column: Column, record: Record, is_tested: bool) -> Answer:
    """A model's answer with what is told about it; a fixed question has no reference to compare with."""
    flags, warnings, facts = [], [], []
    if record["finish_reason"] == "length":
        flags.append("cut")
        warnings.append("cut off")
    if is_tested and not record["usable"]:
        flags.append("unusable")
        warnings.append(f"not usable: {record.get('problem') or 'no reason is given'}")
    if (tokens := record.get("generated_tokens")) is not None:
        facts.append(f"{tokens:,} token{'' if tokens == 1 else 's'}")
    if is_tested and record["parsed_value"] is not None:
        facts.append(f"value {record['parsed_value']:g}")
    if is_tested and record["prediction"] == record["reference"]:
        facts.append("same as the reference")
    if is_tested and (perplexity := format_perplexity(record)):
        facts.append(f"perplexity of the reference {perplexity}")
    return Answer(column, show(record["prediction"]), flags, warnings, facts)


def show(text: str) -> str:
    """Text as HTML can hold it: control characters and halves of surrogate pairs become �."""
    return UNSEEN.sub("\ufffd", text)


def build_cards(
    found: Mapping[str, Sequence[Record]], columns: Sequence[Column], chosen: Sequence[Record], kind: str
) -> list[Card]:
    """A card for each of the chosen records.

    Args:
        found: of `read_answers`.
        columns: of `order_columns`.
        chosen: records of one of the models.
        kind: `question` or `test`; also begins the cards' anchors.
    """
    is_tested = kind == "test"
    by_uid = {model: {record["uid"]: record for record in records} for model, records in found.items()}
    cards = []
    for number, record in enumerate(chosen, start=1):
        answers = []
        for column in columns:
            if column.key in by_uid:
                answers.append(build_answer(column, by_uid[column.key][record["uid"]], is_tested))
            elif column.key == REFERENCE and is_tested:
                answers.append(Answer(column, show(record["reference"]), [], [], []))
        anchor = f"{kind}-{record['uid'] if record['uid'].isalnum() else number}"
        cards.append(Card(anchor, show(record["system"]), show(record["prompt"]), record.get("label"), answers))
    return cards


def render_page(category: str, tests: dict[str, list[Record]], questions: dict[str, list[Record]], most: int) -> str:
    """The page as HTML.

    Args:
        category: whose answers they are.
        tests: predictions of each model, from `read_answers`.
        questions: answers to the fixed questions, likewise; empty where there are none.
        most: test prompts on the page; the page says how many there are.
    """
    columns = order_columns(list(tests))
    predictions = next(iter(tests.values()))
    chosen = choose_records(predictions, most)
    asked = next(iter(questions.values()), [])
    if not chosen:
        columns = [column for column in columns if column.key != REFERENCE]
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template, css, script = PARTS[0].name, *(path.read_text(encoding="utf-8") for path in PARTS[1:])
    return environment.get_template(template).render(
        category=category,
        columns=columns,
        questions=build_cards(questions, columns, asked, "question"),
        tests=build_cards(tests, columns, chosen, "test"),
        total=len(predictions),
        has_unusable=any(not record["usable"] for records in tests.values() for record in records),
        language=guess_language,
        policy=build_policy(css, script),
        css=Markup(css),
        script=Markup(script),
    )


def build_policy(css: str, script: str) -> str:
    """Content-Security-Policy by which nothing is loaded, and no style or script runs but these."""
    digests = {name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for name, text in
               (("style", css), ("script", script))}  # fmt: skip
    allowed = "; ".join(f"{name}-src 'sha256-{digest}'" for name, digest in digests.items())
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def write_page(path: str | PathLike[str], html: str) -> None:
    """Write a page, whole or not at all."""
    with write_atomically(path) as file:
        file.write(html)
