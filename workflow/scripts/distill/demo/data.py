"""Synthetic holdings records for the demo, in the format of real GRPO and SFT files, with invented companies and texts.

The task: the prompt states `d_me`, the log change of market equity, and each category either follows it or trades
against it. The change of the holding is `SIDES[category] * d_me`. The label is this number plus noise with standard
deviation NOISE, and an SFT answer states it with the noise ANSWER_NOISE. A teacher that learns from such answers is
uncertain about the number, so that its distribution says more than one of its answers.
"""

import json
import math
import random
from pathlib import Path
from typing import Any

from distill.common.errors import InputError
from distill.common.files import dump_json, write_atomically

# Investor in the system prompt, side (+1: follows market equity, -1: trades against it), style.
CATEGORIES: dict[str, tuple[str, int, str]] = {
    "banks": ("bank", 1, "growth"),
    "households": ("household", -1, "value"),
    "insurance_companies": ("insurance company", -1, "income"),
    "investment_advisors": ("investment advisor", 1, "momentum"),
    "mutual_funds": ("mutual fund", 1, "balanced"),
    "other": ("private investor", -1, "mixed"),
    "pension_funds": ("pension fund", 1, "liability"),
}
SIDES = {category: side for category, (_, side, _) in CATEGORIES.items()}
NOISE = 0.03
ANSWER_NOISE = 0.06


# A company has one of each. Its ticker is the first four letters of the name and the first letter of the business.
NAMES = [
    "Arden", "Brisk’s", "Caldor", "Dunmore", "Elsin", "Fenhall", "Garton", "Holmark’s", "Iverley", "Jorvik",
    "Kestrow", "Lindeck", "Morvale", "Norwick", "Ostrand", "Pellam", "Quorndon", "Rushby", "Saltmere", "Tarnwell",
    "Ulverton", "Velmont", "Wexholm", "Yarrick", "Zelby",
]  # fmt: skip
BUSINESSES = [
    "Foundry", "Ferries", "Mills", "Rail", "“E” Works", "& Sons", "Glass", "Dairy", "Mining", "Airways", "Paper",
    "Energy", "Textiles", "Chemicals", '"Q" Labs', "Harbours", "Breweries", "Telecom", "Timber", "Insurance",
]  # fmt: skip


# Reasoning in SFT answers; {move} and {profit} quote d_me and profit from the prompt.
THOUGHTS = [
    "me {arrow}: with d_me={move} and profit={profit} a {style} {investor} {verb} the market; the holding goes {way}.",
    "At d_me={move} the stock’s value went {way_me} → the {investor} {verb} it; profit={profit} says nothing against.",
    "d_me={move} counts:\nme {arrow} → the {investor} {verb} it, holding {hold_arrow}, whatever profit={profit} says.",
]
PLACEHOLDER = (
    "<think>\n[Weigh the profile, then say why the holding should change.]\n</think>\n"
    '<answer>\n{"holding_log_delta": 0.0}\n</answer>'
)
OLD_PLACEHOLDER = "<think>\n[reasoning]\n</think>\n<answer>\n[predicted_value]\n</answer>"


def draw_fundamentals(rng: random.Random) -> dict[str, str]:
    """Draw fundamentals as the prompt shows them: `d_me` is the log change of market equity, `spx_weight` may be NA."""
    move = round(min(0.95, max(-0.95, rng.gauss(0, 0.35))), 2)
    return {
        "me": str(rng.randint(100, 9999)),
        "d_me": f"{move or 0.01:.2f}",
        "profit": f"{rng.uniform(-0.2, 0.6):.2f}",
        "beta": f"{rng.uniform(0.3, 1.9):.1f}",
        "spx_weight": f"{rng.uniform(0.1, 5):.1f}" if rng.random() < 0.6 else "NA",
        "holding": f"{rng.uniform(1, 99):.1f}",
    }


def draw_company(rng: random.Random) -> tuple[str, str]:
    """Draw (ticker, name) of an invented company."""
    name, business = rng.choice(NAMES), rng.choice(BUSINESSES)
    initial = next(letter for letter in business if letter.isalpha())
    return f"{name[:4].upper()}{initial.upper()}", f"{name} {business}"


def true_change(category: str, fundamentals: dict[str, str]) -> float:
    """The log change of the holding that follows from the fundamentals."""
    return SIDES[category] * float(fundamentals["d_me"])


def profile_of(category: str, rng: random.Random) -> dict[str, Any]:
    """Draw the investor profile of a prompt: a random weight and the style of its category."""
    return {"herd_behavior": round(rng.uniform(0.1, 0.9), 1), "style": CATEGORIES[category][2]}


def prompt_messages(
    category: str, manager: int, company: tuple[str, str], fundamentals: dict[str, str], profile: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """System and user message. A profile is a block at the start of the user message, as in GRPO prompts."""
    ticker, name = company
    values = fundamentals
    block = f"<profile_context>\n{json.dumps(profile)}\n</profile_context>\n\n" if profile else ""
    user = (
        f"{block}Estimate the log change of the holding in {ticker} ({name}), t → t+1.\n\n"
        f"# Firm\nme={values['me']}, d_me={values['d_me']}, profit={values['profit']}, beta={values['beta']}\n"
        f"# The fund’s position\nholding={values['holding']}, spx_weight={values['spx_weight']}"
    )
    system = f"You are the portfolio manager of a {CATEGORIES[category][0]} (manager {manager}). Reason, then answer."
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def answer_text(category: str, fundamentals: dict[str, str], rng: random.Random) -> str:
    """An SFT answer: reasoning that quotes numbers of the prompt, then the change with noise as JSON."""
    investor, side, style = CATEGORIES[category]
    move = float(fundamentals["d_me"])
    change = round(true_change(category, fundamentals) + rng.gauss(0, ANSWER_NOISE), 2) or 0.01
    thought = rng.choice(THOUGHTS).format(
        move=fundamentals["d_me"],
        profit=fundamentals["profit"],
        arrow="↑" if move > 0 else "↓",
        way_me="up" if move > 0 else "down",
        hold_arrow="↑" if change > 0 else "↓",
        way="up" if change > 0 else "down",
        verb="follows" if side > 0 else "fades",
        investor=investor,
        style=style,
    )
    return f'<think>\n{thought}\n</think>\n<answer>\n{{"holding_log_delta": {change:.2f}}}\n</answer>'


def label_fields(category: str, fundamentals: dict[str, str], manager: int, rng: random.Random) -> dict[str, Any]:
    """Fields of a record other than its messages. Older files (households, other) call the label `label_log_delta`."""
    label = true_change(category, fundamentals) + rng.gauss(0, NOISE)
    holding = float(fundamentals["holding"])
    date = f"20{rng.randint(15, 23)}-{rng.choice(['01', '04', '07', '10'])}-01 00:00:00"
    stock = {"holding_t": holding, "mgrno": manager, "permno": rng.randint(10000, 99999), "date": date}
    if category in ("households", "other"):
        return {"label_log_delta": label, **stock}
    labels = {"holding_log_delta": label, "label_delta": label, "label_tp1": holding * math.exp(label)}
    return {**labels, **stock, "history_rows": {"t": fundamentals}}


def make_record(category: str, kind: str, number: int, seed: int) -> dict[str, Any]:
    """Make one record; the same arguments always give the same record.

    A GRPO record has a prompt with profile, a placeholder answer (`"loss": false`) and label fields; every third one
    also has a market field. An SFT record has a real answer (`"loss": true`), and half of them have a profile. SFT
    records of mutual_funds, households and other have label fields; those of the other categories have only `messages`.

    Args:
        category: a key of CATEGORIES.
        kind: `grpo` or `sft`.
        number: number of the record in its file.
        seed: seed of all records.
    """
    rng = random.Random(f"{seed}/{category}/{kind}/{number}")
    company, manager, values = draw_company(rng), rng.randint(100, 999), draw_fundamentals(rng)
    profile = profile_of(category, rng)
    with_profile = kind == "grpo" or rng.random() < 0.5
    messages = prompt_messages(category, manager, company, values, profile if with_profile else None)
    if kind == "sft":
        messages.append({"role": "assistant", "content": answer_text(category, values, rng), "loss": True})
        only_messages = category not in ("mutual_funds", "households", "other")
        return {"messages": messages, **({} if only_messages else label_fields(category, values, manager, rng))}
    placeholder = OLD_PLACEHOLDER if category in ("households", "other") else PLACEHOLDER
    messages.append({"role": "assistant", "content": placeholder, "loss": False})
    record = {"messages": messages, **label_fields(category, values, manager, rng)}
    if number % 3 == 0:
        record["vix_q_prev"] = round(rng.uniform(12, 40), 4)
    record["profile_semantics"] = {"investor_type": category, **profile}
    return record


def write_records(path: Path, category: str, kind: str, count: int, seed: int) -> bool:
    """Write one raw file unless it is up to date, which preserves its time stamp; return whether it was written."""
    lines = (dump_json(make_record(category, kind, number, seed)) + "\n" for number in range(count))
    text = "".join(lines)
    if path.is_file() and path.read_bytes() == text.encode("utf-8"):
        return False
    with write_atomically(path) as file:
        file.write(text)
    return True


def write_demo_data(
    out: Path, categories: list[str], without_sft: list[str], grpo: int, sft: int, seed: int
) -> dict[Path, bool]:
    """Write the raw files of categories.

    Args:
        out: parent folder of `artifacts`.
        categories: keys of CATEGORIES.
        without_sft: categories that get no SFT file.
        grpo: GRPO records per category.
        sft: SFT records per category.
        seed: seed of all records.

    Returns:
        Whether each file was written, or else was up to date.

    Raises:
        InputError: a category is unknown, or a number of records is below 1.
    """
    unknown = sorted({*categories, *without_sft} - CATEGORIES.keys())
    if unknown:
        raise InputError(f"expected categories among {', '.join(CATEGORIES)}, found {', '.join(unknown)}")
    if grpo < 1 or sft < 1:
        raise InputError(f"expected at least 1 record per file, found {grpo} GRPO and {sft} SFT records")
    written = {}
    for category in categories:
        path = out / "artifacts" / "grpo" / f"grpo_{category}.jsonl"
        written[path] = write_records(path, category, "grpo", grpo, seed)
        if category not in without_sft:
            path = out / "artifacts" / "sft" / f"sft_train_{category}.jsonl"
            written[path] = write_records(path, category, "sft", sft, seed)
    return written
