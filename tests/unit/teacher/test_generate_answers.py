"""Teacher answers: generated once, cached by content, parsed and counted."""

import hashlib
import json
import shutil
from fractions import Fraction

import pytest
from conversations import make_conversation, say
from safetensors.torch import load_file, save_file
from tiny import CHATML, SPECIAL, TOOLS, build_tokenizer, save_model

import generate_answers
from distill.common import disk
from distill.common.digest import digest_of
from distill.common.errors import InputError
from distill.common.files import read_jsonl, write_jsonl
from distill.evaluation.predict import predict
from distill.generation.answer_cache import CacheWriter, read_cache
from distill.generation.sampling import Generated, Sampling
from distill.generation.transformers_engine import ModelSource, TransformersEngine
from distill.models.fingerprint import fingerprint_model
from distill.models.load import load_tokenizer
from distill.records.answer_format import parse_answer
from distill.records.conversations import read_teacher_conversation
from distill.records.mix import Labels, Source, mix_records
from distill.records.prompts import make_prompts
from distill.records.raw_records import get_fields
from distill.teacher.generate_answers import AnswerSettings, answer_prompts, load_prompts, to_request


@pytest.fixture
def model(tmp_path, tokenizer):
    return save_model(tmp_path / "teacher", tokenizer, hidden=64, scale=8.0)


@pytest.fixture
def prompts(prompts):
    """Prompts as make_prompts.py writes them."""
    return [prompt | {"id": number, "label": None, "origin": "sft"} for number, prompt in enumerate(prompts)]


@pytest.fixture
def ask(model, tmp_path, prompts):
    def run(prompts=prompts, sampling=Sampling(max_new_tokens=10, temperature=1.0), batch_size=2, **changes):  # noqa: B008
        settings = {"model": model, "dtype": "float32", "device": "cpu"} | changes
        engine = TransformersEngine(ModelSource(**settings), sampling, batch_size)
        records, stats = answer_prompts(prompts, engine, AnswerSettings(), tmp_path / "cache")
        return list(records), stats

    return run


DATED = "{{ strftime_now('%Y') }}{% if quiet %}!{% endif %}" + CHATML


def fingerprint(model, sampling=Sampling(4, 0.0), **settings):  # noqa: B008
    return TransformersEngine(ModelSource(model, device="cpu", **settings), sampling, 1).fingerprint()


def test_template_arguments_and_a_date_that_the_template_reads_are_part_of_the_key(model, tokenizer):
    plain = fingerprint(model)
    assert fingerprint(model, template_date="2025-01-31") == plain  # CHATML shows no date
    build_tokenizer(template=DATED).save_pretrained(model)
    changes = ({}, {"template_date": "2025-01-31"}, {"template_arguments": {"quiet": True}})
    assert len({plain, *(fingerprint(model, **settings) for settings in changes)}) == 4


def test_the_key_of_a_template_without_arguments_and_date_is_that_of_earlier_versions(model, tokenizer):
    parts = {
        "model": fingerprint_model(model),
        "dtype": "torch.bfloat16",
        "quantization": "none",
        "template": tokenizer.chat_template,
        "sampling": {"max_new_tokens": 4, "temperature": 0.0},
    }
    assert fingerprint(model) == digest_of(parts)


@pytest.mark.parametrize(
    ("special", "expected"),
    [
        (["<think>", "</think>"], ["<think>"]),
        (["[THINK]", "[/THINK]"], ["[THINK]"]),
        (["<file_sep>", "<a>", "</b>"], None),
    ],
)
def test_the_key_changes_where_earlier_versions_left_special_tags_out(model, tokenizer, special, expected):
    tagged = build_tokenizer(special=[*SPECIAL, *special])
    tagged.save_pretrained(model)
    parts = {
        "model": fingerprint_model(model),
        "dtype": "torch.bfloat16",
        "quantization": "none",
        "template": tokenizer.chat_template,
        "sampling": {"max_new_tokens": 4, "temperature": 0.0},
    }
    tags = {"special_tags": expected} if expected else {}
    assert fingerprint(model) == digest_of(parts | tags)


class Scripted:
    """An engine with scripted answers: texts by uid, in the order of their samples."""

    def __init__(self, texts, overlong=()):
        self.texts, self.overlong, self.asked = texts, dict(overlong), []

    def fingerprint(self):
        return "scripted"

    def describe(self):
        return {"model": "scripted"}

    def find_overlong(self, requests):
        return {r.uid: self.overlong[r.uid] for r in requests if r.uid in self.overlong}

    def generate(self, requests):
        for request in requests:
            self.asked.append(request.key)
            yield [(request, Generated(self.texts[request.uid][request.sample], "stop", 5, 7))]

    depends_on_batch = False

    def peak_memory_mb(self):
        return 3

    def peak_reserved_mb(self):
        return 4


def value(number):
    return f'<think>a</think><answer>{{"v": {number}}}</answer>'


BROKEN = "no answer here"


def ask_scripted(prompts, texts, cache, asking, **more):
    engine = Scripted({prompt["uid"]: listed for prompt, listed in zip(prompts, texts, strict=True)}, **more)
    records, stats = answer_prompts(prompts, engine, asking, cache)
    return list(records), stats, engine


def test_nothing_is_asked_twice(ask, prompts, monkeypatch):
    answers, stats = ask()
    assert (stats["from_cache"], stats["generated"]) == (0, len(prompts))
    assert stats["generated_tokens"] == sum(record["generated_tokens"] for record in answers)
    assert stats["prompt_tokens"] > 0
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
    from distill.generation.rolling_batch import RollingBatch

    step = RollingBatch.step

    def break_in_the_end(self):
        if self.waiting == 0 and len(self.rows) == 1:
            raise RuntimeError("device lost")
        step(self)

    monkeypatch.setattr(RollingBatch, "step", break_in_the_end)
    with pytest.raises(RuntimeError, match="device lost"):
        ask()
    monkeypatch.undo()
    (folder,) = (tmp_path / "cache").iterdir()
    kept = len(prompts) - 1
    assert len(read_cache(folder)) == kept
    assert ask()[1]["from_cache"] == kept


def test_unusable_answers_are_marked_and_kept(prompts, tmp_path):
    prompts = prompts[:3]
    texts = ['<think>a</think><answer>{"v": −0.25}</answer>', BROKEN, '<answer>{"v": "high"}</answer>']
    records, stats, _ = ask_scripted(prompts, [[text] for text in texts], tmp_path, AnswerSettings("v"))
    assert [record["usable"] for record in records] == [True, False, False]
    assert [record["parsed_value"] for record in records] == [-0.25, None, None]
    assert [record["raw_output"] for record in records] == texts
    assert (stats["usable"], stats["rejected"], stats["unanswered"], stats["retried"]) == (1, 2, 2, 0)
    assert stats["problems"] == {"no <answer> block": 1, "v is not a number": 1}
    assert (stats["refused"], stats["depends_on_batch"]) == (0, False)
    records, _, engine = ask_scripted(prompts, [[text] for text in texts], tmp_path, AnswerSettings(None))
    assert all(record["usable"] for record in records)
    assert engine.asked == []  # the answer format does not change the answers
    # An answer that is the whole text does not stand twice.
    stored = [record["answer"] if record["answer"] is not None else record["raw_output"].strip() for record in records]
    assert stored == [parse_answer(text, None).answer for text in texts]
    assert None in [record["answer"] for record in records]


def test_a_disk_without_room_for_the_answers_is_said_before_a_model_is_loaded(prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "find_free", lambda _: 1000)
    settings = AnswerSettings(None, max_new_tokens=500)
    with pytest.raises(InputError, match=r"of free disk for \d+ teacher answers of up to 500 tokens, found 1 kB"):
        ask_scripted(prompts, [["text"] for _ in prompts], tmp_path, settings)


def test_unusable_answers_are_asked_for_again_with_another_seed(prompts, tmp_path):
    prompts = prompts[:3]
    texts = [[value(1)], [BROKEN, value(2)], [BROKEN, BROKEN, BROKEN]]
    records, stats, engine = ask_scripted(prompts, texts, tmp_path, AnswerSettings("v", retries=2))
    assert [(record["parsed_value"], record["sample"]) for record in records] == [(1, 0), (2, 1), (None, 0)]
    uids = [prompt["uid"] for prompt in prompts]
    assert engine.asked == [*uids, f"{uids[1]}#1", f"{uids[2]}#1", f"{uids[2]}#2"]
    assert (stats["retried"], stats["generated"], stats["from_cache"]) == (3, 6, 0)
    assert (stats["usable"], stats["rejected"], stats["unanswered"]) == (2, 4, 1)

    again, stats, engine = ask_scripted(prompts, texts, tmp_path, AnswerSettings("v", retries=2))
    assert again == records
    assert (engine.asked, stats["from_cache"], stats["retried"]) == ([], 6, 3)


def test_of_several_answers_all_usable_ones_or_the_nearest_are_kept(prompts, tmp_path):
    prompts = [prompt | {"label": label} for prompt, label in zip(prompts, [0.5, 0.5, None], strict=False)]
    texts = [[value(3), value(0.4), value(1)], [BROKEN, value(0.75), value(0.25)], [BROKEN, value(9), value(8)]]
    every, stats, _ = ask_scripted(prompts, texts, tmp_path, AnswerSettings("v", samples=3))
    assert [(record["id"], record["sample"]) for record in every] == [
        (0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2),
    ]  # fmt: skip
    assert (stats["usable"], stats["rejected"], stats["generated"], stats["prompts"]) == (7, 2, 9, 3)
    best, stats, engine = ask_scripted(prompts, texts, tmp_path, AnswerSettings("v", samples=3, keep="best"))
    assert [record["parsed_value"] for record in best] == [0.4, 0.75, 9]
    assert (stats["from_cache"], engine.asked) == (9, [])
    one, _, engine = ask_scripted(prompts, texts, tmp_path, AnswerSettings("v"))
    assert [record["sample"] for record in one] == [0, 0, 0]
    assert engine.asked == []  # the first of several samples equals a single one


def test_prompts_beyond_the_context_are_named_or_left_out(prompts, tmp_path):
    prompts = prompts[:3]
    overlong = {prompts[1]["uid"]: "900 tokens, the limit is 511"}
    texts = [[value(1)]] * 3
    with pytest.raises(InputError, match=r"1 of 3 prompts.*\n  id 1: 900 tokens, the limit is 511"):
        ask_scripted(prompts, texts, tmp_path, AnswerSettings("v"), overlong=overlong)
    records, stats, engine = ask_scripted(
        prompts, texts, tmp_path, AnswerSettings("v", overlong="skip"), overlong=overlong
    )
    assert [record["id"] for record in records] == [0, 2]
    assert (stats["prompts"], stats["overlong"], stats["generated"]) == (3, 1, 2)
    assert prompts[1]["uid"] not in engine.asked


def test_a_models_context_is_its_configurations(model, prompts):
    engine = TransformersEngine(ModelSource(model, dtype="float32", device="cpu"), Sampling(4, 0.0), 2)
    from distill.teacher.generate_answers import to_request

    long = prompts[0] | {"prompt": "me=12.5 " * 400}
    assert engine.find_overlong([to_request(prompt, 0) for prompt in prompts]) == {}
    (found,) = engine.find_overlong([to_request(long, 0)]).values()
    assert found.endswith("tokens, the limit is 511")


def test_the_script_writes_outputs_and_counts(model, prompts, tmp_path):
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    settings = {"--prompts": "prompts.jsonl", "--out": "out.jsonl", "--stats": "stats.json", "--cache": "cache"}
    argv = [text for name, path in settings.items() for text in (name, str(tmp_path / path))]
    argv += ["--model", model, "--dtype", "float32", "--device", "cpu"]
    argv += ["--answer-key", "v", "--max-new-tokens", "6", "--quantization", "nf4", "--retries", "1"]
    generate_answers.main(argv)
    records = [record for _, record in read_jsonl(tmp_path / "out.jsonl")]
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert [record["uid"] for record in records] == [prompt["uid"] for prompt in prompts]
    assert stats["usable"] + stats["rejected"] == stats["from_cache"] + stats["generated"] >= len(prompts)
    assert stats["retried"] == stats["generated"] - len(prompts)
    names = {"prompts", "from_cache", "generated", "usable", "rejected", "retried", "generated_tokens"}
    assert stats.keys() >= names | {
        "prompt_tokens",
        "seconds",
        "tokens_per_second",
        "peak_memory_mb",
        "peak_reserved_mb",
    }
    generate_answers.main([*argv, "--shard", "1-of-2"])
    part = [record["uid"] for _, record in read_jsonl(tmp_path / "out.jsonl")]
    assert set(part) < {prompt["uid"] for prompt in prompts}


def test_a_prompt_that_was_answered_is_not_measured_again(prompts, tmp_path, monkeypatch):
    """With every answer cached, tokenizing 100,000 prompts would take longer than everything else."""
    texts = [[value(1)]] * len(prompts)
    ask_scripted(prompts[:-1], texts[:-1], tmp_path, AnswerSettings("v"))
    measured = []
    monkeypatch.setattr(Scripted, "find_overlong", lambda self, requests: measured.extend(requests) or {})
    ask_scripted(prompts, texts, tmp_path, AnswerSettings("v"))
    assert [request.uid for request in measured] == [prompts[-1]["uid"]]


def test_beside_the_answers_stands_whose_they_are(ask, tmp_path, model):
    ask()
    (folder,) = (tmp_path / "cache").iterdir()
    described = json.loads((folder / "teacher.json").read_text())
    assert described["engine"] == "transformers"
    assert (described["model"], described["adapter"], described["dtype"]) == (model, None, "float32")
    assert described["sampling"]["temperature"] == 1.0


def test_predictions_go_on_where_they_were_stopped(records, tmp_path):
    engine = Scripted({record["uid"]: [value(record["id"])] for record in records})
    plain = engine.generate

    def break_at_the_fourth(requests):
        for number, batch in enumerate(plain(requests)):
            if number == 3:
                raise InputError("the server is gone")
            yield batch

    engine.generate = break_at_the_fourth
    with pytest.raises(InputError, match="the server is gone"):
        predict(records, engine, "v", False, tmp_path)
    kept = engine.asked[:3]
    engine.generate, engine.asked = plain, []
    predictions = predict(records, engine, "v", False, tmp_path)
    assert sorted([*kept, *engine.asked]) == sorted(record["uid"] for record in records)
    assert [(one["id"], one["parsed_value"]) for one in predictions] == [(r["id"], r["id"]) for r in records]


def test_answers_to_single_turns_are_found_by_the_keys_of_earlier_versions(tmp_path):
    """Their uid is the hash of both texts, so that a run of such records generates no answer again."""
    messages = [say("system", "You are a manager."), say("user", "me=1 ↓"), say("assistant", "a")]
    write_jsonl(tmp_path / "sft.jsonl", [{"messages": messages}])
    source = Source("sft", tmp_path / "sft.jsonl", Fraction(1))
    mix_records("banks", [source], 42, Labels([], None), tmp_path / "mix.jsonl")
    make_prompts(tmp_path / "mix.jsonl", [], None, tmp_path / "prompts.jsonl")
    uid = hashlib.sha256("You are a manager.\x1fme=1 ↓".encode()).hexdigest()[:32]
    stored = {"uid": uid, "sample": 0, "raw_output": "me", "finish_reason": "stop", "generated_tokens": 2}
    with CacheWriter(tmp_path / "cache") as writer:
        writer.add([stored])
    found = read_cache(tmp_path / "cache", [prompt["uid"] for prompt in load_prompts(tmp_path / "prompts.jsonl")])
    assert list(found) == [(uid, 0)]


def test_a_conversation_is_answered_with_its_history_and_the_teachers_text(model, tmp_path):
    build_tokenizer(template=TOOLS).save_pretrained(model)
    fields = get_fields(make_conversation(teacher_prompt="Think."))
    prompt = {"id": 0, "uid": "a", "label": None, "origin": "sft"} | fields
    engine = TransformersEngine(ModelSource(model, dtype="float32", device="cpu"), Sampling(4, 0.0), 1)
    engine.check_requests([to_request(prompt, 0)], "prompts.jsonl")
    records, stats = answer_prompts([prompt], engine, AnswerSettings(), tmp_path / "cache")
    (found,) = records
    assert {name: found[name] for name in fields} == fields
    assert found["prompt"] == "0.5"
    asked = engine.chat.encode_conversation(read_teacher_conversation(fields))
    assert stats["prompt_tokens"] == len(asked)


def test_a_template_that_lacks_tools_names_file_and_record(model, tmp_path):
    prompt = {"id": 3, "uid": "a", "label": None, "origin": "sft"} | get_fields(make_conversation())
    write_jsonl(tmp_path / "prompts.jsonl", [prompt])
    argv = ["--prompts", tmp_path / "prompts.jsonl", "--out", tmp_path / "out.jsonl", "--stats", tmp_path / "out.json"]
    argv += ["--cache", tmp_path / "cache", "--model", model, "--device", "cpu"]
    with pytest.raises(InputError, match=r"prompts.jsonl: id 3 \(uid a\): .*a chat template that renders tools"):
        generate_answers.main(list(map(str, argv)))
    assert not (tmp_path / "cache").exists()
