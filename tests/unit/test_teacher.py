"""Teacher answers: asked once, kept by content, parsed and counted."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from tiny import save_model

import generate_answers
from distill.cache import read_cache
from distill.files import read_jsonl, write_jsonl
from distill.generation import Sampling
from distill.model_source import ModelSource
from distill.models import load_tokenizer
from distill.teacher import answer_prompts, teacher_outputs


@pytest.fixture
def model(tmp_path, tokenizer):
    return save_model(tmp_path / "teacher", tokenizer, hidden=64, scale=8.0)


@pytest.fixture
def ask(model, tmp_path, prompts):
    def run(prompts=prompts, sampling=Sampling(max_new_tokens=10, temperature=1.0), batch_size=2, **changes):  # noqa: B008
        settings = {"model": model, "dtype": "float32", "device": "cpu"} | changes
        return answer_prompts(prompts, ModelSource(**settings), sampling, batch_size, tmp_path / "cache")

    return run


def test_nothing_is_asked_twice(ask, prompts, monkeypatch):
    answers, stats = ask()
    assert (stats["from_cache"], stats["generated"]) == (0, len(prompts))
    assert stats["generated_tokens"] == sum(answers[prompt["uid"]]["generated_tokens"] for prompt in prompts)
    monkeypatch.setattr(ModelSource, "load", lambda self: pytest.fail("the model was loaded"))
    again, stats = ask()
    assert again == answers
    assert (stats["from_cache"], stats["generated"], stats["generated_tokens"]) == (len(prompts), 0, 0)


def test_a_new_prompt_costs_one_answer(ask, prompts):
    ask(prompts[:-1])
    _, stats = ask(prompts)
    assert (stats["from_cache"], stats["generated"]) == (len(prompts) - 1, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": Sampling(max_new_tokens=11, temperature=1.0)},
        {"sampling": Sampling(max_new_tokens=10, temperature=0.5)},
        {"sampling": Sampling(max_new_tokens=10, temperature=1.0, seed=1)},
        {"quantization": "int8"},
        {"dtype": "bfloat16"},
    ],
    ids=["tokens", "temperature", "seed", "quantization", "dtype"],
)
def test_what_decides_an_answer_is_part_of_its_key(ask, changes):
    ask()
    assert ask(**changes)[1]["from_cache"] == 0


def test_the_batch_size_and_the_models_place_are_not(ask, model, tmp_path, prompts):
    ask()
    assert ask(batch_size=3)[1]["from_cache"] == len(prompts)
    shutil.move(model, tmp_path / "moved")
    assert ask(model=str(tmp_path / "moved"))[1]["from_cache"] == len(prompts)


def test_changed_weights_are_another_teacher(ask, model):
    ask()
    path = f"{model}/model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][0] += 1
    save_file(weights, path, metadata={"format": "pt"})
    assert ask()[1]["from_cache"] == 0


def test_a_changed_template_is_another_teacher(ask, model):
    ask()
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "Assistant")
    tokenizer.save_pretrained(model)
    assert ask()[1]["from_cache"] == 0


def test_what_was_answered_before_an_error_is_kept(ask, prompts, monkeypatch, tmp_path):
    calls = []

    def break_at_the_third(model, tokenizer, encoded, keys, sampling):
        calls.append(keys)
        if len(calls) == 3:
            raise RuntimeError("device lost")
        return generate(model, tokenizer, encoded, keys, sampling)

    from distill import generation

    generate = generation.generate_batch
    monkeypatch.setattr(generation, "generate_batch", break_at_the_third)
    with pytest.raises(RuntimeError, match="device lost"):
        ask()
    (folder,) = (tmp_path / "cache").iterdir()
    assert len(read_cache(folder)) == 4
    assert ask()[1]["from_cache"] == 4


def test_outputs_mark_unusable_answers_and_keep_them(prompts):
    prompts = [prompt | {"id": i, "label": 0.5, "origin": "grpo"} for i, prompt in enumerate(prompts[:3])]
    texts = ['<think>a</think><answer>{"v": −0.25}</answer>', "no answer here", '<answer>{"v": "high"}</answer>']
    answers = {
        prompt["uid"]: {"raw_output": text, "finish_reason": "stop", "generated_tokens": 5}
        for prompt, text in zip(prompts, texts, strict=True)
    }
    records, problems = teacher_outputs(prompts, answers, "v")
    assert [record["usable"] for record in records] == [True, False, False]
    assert [record["parsed_value"] for record in records] == [-0.25, None, None]
    assert [record["raw_output"] for record in records] == texts
    assert sum(problems.values()) == 2
    assert all(record["usable"] for record in teacher_outputs(prompts, answers, None)[0])


def test_the_script_writes_outputs_and_counts(model, prompts, tmp_path):
    prompts = [prompt | {"id": i, "label": None, "origin": "sft"} for i, prompt in enumerate(prompts)]
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    argv = [
        "--prompts",
        tmp_path / "prompts.jsonl",
        "--out",
        tmp_path / "out.jsonl",
        "--stats",
        tmp_path / "stats.json",
    ]
    argv += ["--cache", tmp_path / "cache", "--model", model, "--dtype", "float32", "--device", "cpu"]
    generate_answers.main([*map(str, argv), "--answer-key", "v", "--max-new-tokens", "6", "--quantization", "nf4"])
    records = [record for _, record in read_jsonl(tmp_path / "out.jsonl")]
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert [record["uid"] for record in records] == [prompt["uid"] for prompt in prompts]
    assert stats["usable"] + stats["rejected"] == stats["prompts"] == len(prompts)
    names = {"from_cache", "generated", "generated_tokens", "seconds", "tokens_per_second", "peak_memory_mb"}
    assert stats.keys() >= names
