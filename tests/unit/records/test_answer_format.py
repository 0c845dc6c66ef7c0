"""The answer format: which answers are parsed, which deviations are accepted and which are not."""

import random

import pytest

from distill.records.answer_format import Answer, parse_answer

KEY = "holding_log_delta"


def answer(body: str) -> Answer:
    return parse_answer(f"<think>because</think>\n<answer>{body}</answer>", KEY)


def test_think_answer_and_value_are_parsed():
    text = '<think>me↓ (-12%)\n→ less</think>\n<answer>\n{"holding_log_delta": -0.08}\n</answer>'
    assert parse_answer(text, KEY) == Answer("me↓ (-12%)\n→ less", '{"holding_log_delta": -0.08}', -0.08, None)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ('{"holding_log_delta": 0.12}', 0.12),
        ('{"holding_log_delta": −0.12}', -0.12),
        ('{"holding_log_delta": 1e−3}', 0.001),
        ('{"holding_log_delta": +0.12}', 0.12),
        ('{"holding_log_delta":\n +3}', 3.0),
        ('{"holding_log_delta": 3}', 3.0),
        ('```json\n{"holding_log_delta": 0.5}\n```', 0.5),
        ('```\n{"holding_log_delta": 0.5}\n```', 0.5),
        ('```json {"holding_log_delta": 0.5}```', 0.5),
        ('```JSON\n{"holding_log_delta": 0.5}\n```', 0.5),
        ('```Json\n{"holding_log_delta": 0.5}\n```', 0.5),
        ('{"note": "a − b", "holding_log_delta": 0.5}', 0.5),
    ],
)
def test_tolerated(body, value):
    found = answer(body)
    assert found.value == value
    assert found.problem is None
    assert found.answer == body.strip()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("0.12", "answer is not a JSON object"),
        ("[0.12]", "answer is not a JSON object"),
        ("", "answer is not JSON"),
        ("[predicted_value]", "answer is not JSON"),
        ('{"holding_log_delta": [predicted_value]}', "answer is not JSON"),
        ('{"holding_log_delta": 0.1} or so', "answer is not JSON"),
        ('{"holding_log_delta": 0.1', "answer is not JSON"),
        ('{"holding": 0.1}', "answer has no holding_log_delta"),
        ('{"holding_log_delta": "0.12"}', "holding_log_delta is not a number"),
        ('{"holding_log_delta": true}', "holding_log_delta is not a number"),
        ('{"holding_log_delta": null}', "holding_log_delta is not a number"),
        ('{"holding_log_delta": [0.1]}', "holding_log_delta is not a number"),
        ('{"holding_log_delta": NaN}', "holding_log_delta is not finite"),
        ('{"holding_log_delta": -Infinity}', "holding_log_delta is not finite"),
        ('{"holding_log_delta": 1e999}', "holding_log_delta is not finite"),
        ('{"holding_log_delta": 1' + "0" * 400 + "}", "holding_log_delta is not finite"),
        ('{"holding_log_delta": 1' + "0" * 9000 + "}", "answer is not JSON"),
        ("[" * 100_000, "answer is not JSON"),
    ],
)
def test_refused(body, problem):
    found = answer(body)
    assert found.value is None
    assert found.problem == problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty text"),
        (" \n", "empty text"),
        ("no tags at all", "no <answer> block"),
        ("<think>cut off", "<think> is not closed"),
        ('<think>cut off <answer>{"holding_log_delta": 1}</answer>', "<think> is not closed"),
        ('<think>a</think><answer>{"holding_log_delta": 1', "<answer> is not closed"),
        ("<think>a</think></answer> <answer>", "<answer> is not closed"),
    ],
)
def test_broken_format(text, problem):
    found = parse_answer(text, KEY)
    assert found.value is None
    assert found.problem == problem


def test_reasoning_may_be_missing_or_opened_in_the_prompt():
    assert parse_answer('<answer>{"holding_log_delta": 1}</answer>', KEY) == Answer(
        None, '{"holding_log_delta": 1}', 1.0, None
    )
    found = parse_answer('because</think><answer>{"holding_log_delta": 1}</answer>', KEY)
    assert (found.think, found.value) == ("because", 1.0)


def test_answers_inside_the_reasoning_do_not_count():
    block = '<answer>{"holding_log_delta": 9}</answer>'
    assert parse_answer(f"<think>maybe {block}</think> done", KEY).problem == "no <answer> block"
    assert parse_answer(f'<think>{block}</think><answer>{{"holding_log_delta": 1}}</answer>', KEY).value == 1.0


def test_the_last_complete_answer_counts():
    blocks = [f'<answer>{{"holding_log_delta": {n}}}</answer>' for n in (1, 2, 3)]
    assert parse_answer(" ".join(blocks), KEY).value == 3.0
    assert parse_answer(" ".join(blocks) + "<answer>{", KEY).value == 3.0
    assert parse_answer(blocks[0] + " so </answer>", KEY).value == 1.0


def test_without_a_key_every_text_with_an_answer_is_usable():
    assert parse_answer("Paris.", None) == Answer(None, "Paris.", None, None)
    assert parse_answer("<think>France</think>\nParis.\n", None) == Answer("France", "Paris.", None, None)
    assert parse_answer("<answer>Paris</answer> indeed", None).answer == "Paris"
    assert parse_answer("  ", None).problem == "empty text"


@pytest.mark.parametrize("text", ["<think>France</think><answer></answer>", "Paris <answer> </answer>"])
def test_an_empty_answer_block_is_unusable(text):
    assert parse_answer(text, None).problem == "<answer> is empty"


@pytest.mark.parametrize("text", ["<think>France</think>", "France</think>\n \n", "<think></think>"])
def test_an_answer_that_is_only_reasoning_is_unusable(text):
    assert parse_answer(text, None).problem == "no answer after the reasoning"


def test_reasoning_that_is_cut_off_is_unusable_without_a_key_too():
    assert parse_answer("<think>cut off", None).problem == "<think> is not closed"


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", "<answer>", "</answer>", "<answer", ": ", ":+", "+", "```", "{", '{"a":', "−", " "]
)
def test_parsing_time_is_linear(piece):
    # On a megabyte, quadratic code would exceed the timeout of the test.
    for text in (piece * (1_000_000 // len(piece)), "<answer>" + piece * (1_000_000 // len(piece)) + "</answer>"):
        assert parse_answer(text, KEY).value is None


def test_any_mixture_of_pieces_is_parsed():
    draw = random.Random(3)
    pieces = [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        '{"holding_log_delta": ',
        "0.5",
        "}",
        "−",
        "```",
        "x",
        "\n",
    ]
    for _ in range(3000):
        text = "".join(draw.choices(pieces, k=draw.randrange(14)))
        found = parse_answer(text, KEY)
        assert (found.value is None) == (found.problem is not None)


@pytest.mark.parametrize(
    "text",
    [
        "[THINK]hm[/THINK]{}",
        "<reasoning>hm</reasoning>{}",
        "<seed:think>\nhm\n</seed:think>{}",
        "<thought>hm</thought>\n{}",
    ]
    + ["<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>{}"],
)
def test_reasoning_in_other_tags_is_no_answer(text):
    block = '<answer>{"holding_log_delta": 1}</answer>'
    assert parse_answer(text.format(block), KEY) == Answer("hm", '{"holding_log_delta": 1}', 1.0, None)
    assert parse_answer(text.format("Paris"), None) == Answer("hm", "Paris", None, None)
    assert parse_answer(text.format(""), None).problem == "no answer after the reasoning"
    assert parse_answer(text[: text.index("hm") + 2], None).problem == "the reasoning is not closed"
    assert parse_answer("See [THINK]: it is a tag.", None).answer == "See [THINK]: it is a tag."


@pytest.mark.parametrize("fence", ["json", "JSON", " json", "jsonc", ""])
def test_a_code_fence_may_name_any_language(fence):
    assert parse_answer(f'<answer>```{fence}\n{{"holding_log_delta": 1}}\n```</answer>', KEY).value == 1.0


@pytest.mark.parametrize(
    "text", ['{"holding_log_delta": 1, "holding_log_delta": 2}', '{"holding_log_delta": 1, "a": {"b": 1, "b": 2}}']
)
def test_a_key_that_comes_twice_in_an_answer_is_a_problem(text):
    assert parse_answer(f"<answer>{text}</answer>", KEY).problem in (
        "answer has holding_log_delta twice",
        "answer has b twice",
    )
