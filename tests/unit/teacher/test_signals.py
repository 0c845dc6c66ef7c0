"""The cached teacher signal: contents, computing, reading, training from it, rejecting another teacher's."""

import json
import logging
import os
import re
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from opened import watch_opened
from peft import LoraConfig, PeftModel, get_peft_model
from reported_progress import Reported
from running import run_python
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import CHATML, build_model, build_tokenizer, save_model
from training_runs import (
    Killed,
    assert_same_weights,
    change_run,
    log_lines,
    make_arguments,
    train_student,
    weights,
    write_splits,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

import check_signal
import compute_signal as script
import train_student as train_script
from distill.common import disk
from distill.common.digest import digest_of
from distill.common.errors import InputError
from distill.common.files import write_jsonl
from distill.models.chat import ChatTemplate
from distill.models.load import load_model
from distill.models.logits import IDENTITY
from distill.records.options import SplitOptions
from distill.records.raw_records import get_uid
from distill.records.splits import get_split, read_split, split_answers
from distill.student import train_student as student_module
from distill.student.divergences import METHODS
from distill.student.student_run import TeacherSource
from distill.student.teacher_signal import HiddenSignal
from distill.teacher import compute_signal as signal_jobs
from distill.teacher import signal_shards, signal_teacher
from distill.teacher.compute_signal import compare_signal, compute_signal
from distill.teacher.signal_files import SignalReader, signal_key, topk_at
from distill.teacher.signal_size import SignalShape, count_tokens, describe_storage, read_sizes
from distill.teacher.signal_teacher import read_head, top_log_probabilities

# Largest relative difference of gradients that is rounding; total variation has steps where p = q.
DIVERGENCES = [name for name, method in METHODS.items() if method.needs_teacher]
ROUNDING = dict.fromkeys(DIVERGENCES, 0.01) | {"tvd": 0.03}


@pytest.fixture
def signal(tmp_path, models):
    """Options of compute_signal.py, with changes."""

    def make(kind="topk", out="signal", top_k=8, **changes):
        argv = ["--data", "unused", "--kind", kind, "--out", str(tmp_path / out)]
        argv += ["--examples", str(tmp_path / "examples")]
        argv += ["--model", models["teacher"], "--dtype", "float32", "--device", "cpu"]
        argv += ["--top-k", str(top_k), "--temperatures", "2.0"] if kind == "topk" else []
        return vars(script.parse_args(argv)) | changes

    return make


@pytest.fixture
def cached(options, signal):
    """Options of a training from a signal computed in this test."""

    def make(records, kind="topk", method="forward_kl", out="out", signal_out=None, top_k=8, **changes):
        kept = signal(kind, signal_out or f"signal_{kind}_{top_k}", top_k)
        compute_signal(kept, records, [])
        found = {"signal": kind, "top_k": top_k if kind == "topk" else None, "signal_folders": [kept["out"]]}
        return options(method, out, **(found | changes))

    return make


def stats(options):
    return json.loads((Path(options["out"]) / "stats.json").read_text())


def data_folder(options):
    (folder,) = (Path(options["out"]) / "data").iterdir()
    return folder


def encode(record, tokenizer):
    system, prompt, answer = (message["content"] for message in record["messages"])
    return ChatTemplate(tokenizer).encode_prompt(system, prompt), ChatTemplate(tokenizer).encode_completion(answer)


def change(records, number):
    """Return the same records, one with another answer."""
    other = json.loads(json.dumps(records))
    other[number]["messages"][2]["content"] += " indeed"
    return other


# ---- What is kept of a distribution ----


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0, 40.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_kept_probabilities_are_the_float64_ones(scale, temperature):
    torch.manual_seed(0)
    logits = torch.randn(50, 200) * scale
    kept = top_log_probabilities(logits, 12, [1.0, temperature])
    exact = (logits.double() / temperature).log_softmax(-1)
    ids = kept["ids"].long()
    assert torch.equal(ids.sort().values, logits.topk(12).indices.sort().values)
    found, tail = topk_at(kept["logprobs"], kept["log_tail"][:, 1], temperature)
    wanted = exact.gather(1, ids)
    near = wanted > -20
    torch.testing.assert_close(found.double()[near], wanted[near], rtol=2e-3, atol=2e-3)
    others = exact.scatter(1, ids, -torch.inf).exp().sum(-1)
    torch.testing.assert_close(tail.double().exp(), others, rtol=3e-3, atol=1e-6)
    # The buckets of each row sum to one.
    torch.testing.assert_close(found.exp().sum(-1) + tail.exp(), torch.ones(50), rtol=0, atol=1e-5)


@pytest.mark.parametrize("gap", [0.0, 5.0, 60.0, 70000.0])
def test_tails_of_nearly_nothing_and_nearly_all_stay_finite(gap):
    logits = torch.zeros(1, 5000)
    logits[0, 7] = gap
    kept = top_log_probabilities(logits, 1, [1.0, 2.0])
    for place, temperature in enumerate((1.0, 2.0)):
        found, tail = topk_at(kept["logprobs"], kept["log_tail"][:, place], temperature)
        exact = (logits.double() / temperature).log_softmax(-1)[0, 7].exp().item()
        assert torch.isfinite(found).all()
        assert torch.isfinite(tail).all()
        assert found.exp().item() == pytest.approx(exact, rel=3e-3, abs=1e-6)
        assert tail.exp().item() == pytest.approx(1 - exact, rel=3e-3, abs=1e-6)


def test_a_signal_of_a_small_vocabulary_keeps_all_of_it():
    kept = top_log_probabilities(torch.randn(3, 5), 8, [1.0])
    assert kept["ids"].shape == (3, 5)
    assert (kept["log_tail"].float().exp() < 1e-6).all()


@pytest.mark.parametrize("with_adapter", [False, True])
def test_hidden_states_and_head_give_the_teachers_logits(signal, models, records, tokenizer, tmp_path, with_adapter):
    """With an adapter on the head, the stored layer equals head and adapter together."""
    kept = signal("hidden")
    model = AutoModelForCausalLM.from_pretrained(models["teacher"])
    if with_adapter:
        lora = LoraConfig(r=2, target_modules=["q_proj", "up_proj", "lm_head"], init_lora_weights=False)
        get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
        kept |= {"adapter": str(tmp_path / "adapter")}
        base = AutoModelForCausalLM.from_pretrained(models["teacher"])
        model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    compute_signal(kept, records, [])
    reader = SignalReader(kept["out"])
    head = reader.head(torch.device("cpu"))
    assert not head.weight.requires_grad
    for record in records:
        prompt, completion = encode(record, tokenizer)
        with torch.no_grad():
            outputs = model(torch.tensor([prompt + completion]), output_hidden_states=True)
        at = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
        hidden = reader.read(signal_key(prompt, completion))["hidden"]
        assert hidden.dtype == torch.bfloat16
        torch.testing.assert_close(hidden.float(), outputs.hidden_states[-1][0, at], rtol=2**-8, atol=1e-6)
        torch.testing.assert_close(head(hidden.float()), outputs.logits[0, at], rtol=2e-2, atol=5e-2)
        alone = head(outputs.hidden_states[-1][0, at])
        torch.testing.assert_close(alone, outputs.logits[0, at], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
    ],
    ids=["a head of its own", "dora"],
)
def test_the_stored_head_is_the_live_one(signal, models, records, tmp_path, settings, quantization):
    kept = signal("hidden")
    model = AutoModelForCausalLM.from_pretrained(models["teacher"])
    if quantization == "int8" and settings.get("use_dora"):  # PEFT's DoRA on int8 layers does not run on a CPU
        settings = settings | {"target_modules": ["lm_head"]}
    adapted = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **settings))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "modules_to_save" in name or "magnitude" in name:
                weight.mul_(1.5)
    adapted.save_pretrained(tmp_path / "adapter")
    kept |= {"adapter": str(tmp_path / "adapter"), "quantization": quantization}
    compute_signal(kept, records, [])
    head = SignalReader(kept["out"]).head(torch.device("cpu"))
    live = load_model(
        models["teacher"], torch.device("cpu"), torch.float32, quantization, str(tmp_path / "adapter")
    ).get_output_embeddings()
    rows = torch.randn(20, head.in_features, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(head(rows), live(rows).float(), rtol=1e-3, atol=1e-4)
    for _, _, divergence, _ in compare_signal(kept | {"signal": kept["out"], "records": 4, "seed": 0}, records):
        assert divergence < 0.01


def test_a_head_that_is_not_linear_is_refused():
    head = torch.nn.Sequential(torch.nn.Linear(8, 30), torch.nn.Tanh())
    with pytest.raises(InputError, match="cannot be stored as one linear layer"):
        read_head(head, torch.device("cpu"), torch.float32)


def test_log_probabilities_are_those_over_the_tokenizers_vocabulary(signal, models, records, tokenizer):
    """The padding of the teacher's vocabulary is excluded."""
    kept = signal("topk")
    compute_signal(kept, records, [])
    reader = SignalReader(kept["out"])
    model = AutoModelForCausalLM.from_pretrained(models["teacher"]).double()
    assert reader.vocabulary == len(tokenizer) < model.config.vocab_size
    for record in records:
        prompt, completion = encode(record, tokenizer)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1, : len(tokenizer)]
        exact = logits.log_softmax(-1)
        found = reader.read(signal_key(prompt, completion))
        torch.testing.assert_close(
            found["logprobs"].double(), exact.gather(1, found["ids"].long()), rtol=1e-3, atol=2e-3
        )
        assert torch.equal(found["ids"][:, 0].long(), exact.argmax(-1))


# ---- A training step from the cache ----


def step(run, records):
    """What a few steps of plain SGD change."""
    run = change_run(run, optimizer="sgd", learning_rate=0.5, max_grad_norm=0.0, warmup_ratio=0.0, epochs=1.0)
    train_student(run, records, [])
    before = AutoModelForCausalLM.from_pretrained(run.model).state_dict()
    found = weights(run)
    return torch.cat([(found[name] - before[name]).flatten() for name in sorted(found)]), log_lines(run)[0]


@pytest.mark.parametrize("method", DIVERGENCES)
def test_hidden_gives_the_loss_and_gradients_of_online(options, cached, records, method):
    online, line = step(options(method, "online", alpha=1.0), records)
    hidden, other = step(cached(records, "hidden", method, "hidden", alpha=1.0), records)
    assert other["kd"] == pytest.approx(line["kd"], rel=2e-3)
    assert (hidden - online).norm() < ROUNDING[method] * online.norm()
    assert online.norm() > 1e-3


@pytest.mark.parametrize("kind", ["hidden", "topk"])
def test_a_signal_reaches_its_records_in_packed_rows(cached, records, kind):
    """Rows of 150 tokens hold two of the records, in another order than that of the micro-batch."""
    plain, line = step(cached(records, kind, max_length=150), records)
    packed, other = step(cached(records, kind, out="packed", max_length=150, packing=True), records)
    assert other["kd"] == pytest.approx(line["kd"], rel=1e-4)
    assert (packed - plain).norm() < 1e-4 * plain.norm()


@pytest.mark.parametrize("method", DIVERGENCES)
def test_hidden_of_a_bfloat16_teacher_is_online_bit_for_bit(options, cached, signal, records, method):
    """One record at a time, because other batches round differently."""
    changes = {"teacher_dtype": "bfloat16", "alpha": 1.0, "batch_size": 1, "gradient_accumulation_steps": 5}
    kept = signal("hidden", "signal", dtype="bfloat16", batch_size=1)
    compute_signal(kept, records, [])
    online, _ = step(options(method, "online", **changes), records)
    hidden = options(method, "hidden", signal="hidden", signal_folders=[kept["out"]], **changes)
    assert torch.equal(step(hidden, records)[0], online)


@pytest.mark.parametrize("method", DIVERGENCES)
def test_topk_of_the_whole_vocabulary_gives_the_loss_and_gradients_of_online(options, cached, records, method):
    online, line = step(options(method, "online", alpha=1.0), records)
    topk, other = step(cached(records, "topk", method, "topk", top_k=320, alpha=1.0), records)
    assert other["kd"] == pytest.approx(line["kd"], rel=2e-3)
    assert (topk - online).norm() < ROUNDING[method] * online.norm()


def test_topk_comes_nearer_to_online_with_k_and_from_below(options, cached, records):
    online, line = step(options(out="online", alpha=1.0), records)
    gaps, losses = [], []
    for top_k in (2, 8, 64, 200):
        found, other = step(cached(records, "topk", out=f"topk_{top_k}", top_k=top_k, alpha=1.0), records)
        gaps.append((found - online).norm().item())
        losses.append(other["kd"])
    assert gaps == sorted(gaps, reverse=True)
    assert losses == sorted(losses)
    assert losses[-1] <= line["kd"] * (1 + 1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_tail_of_many_samples_gives_the_loss_and_gradients_of_online(options, signal, records, temperature):
    """A bucket of the same tail does not."""
    settings = {"alpha": 1.0, "temperature": temperature}
    online, line = step(options(out="online", **settings), records)
    gaps = {}
    for samples in (0, 1024):
        kept = signal(out=f"signal_{samples}", temperatures=[temperature], tail_samples=samples)
        compute_signal(kept, records, [])
        cached = {"signal": "topk", "top_k": 8, "tail_samples": samples, "signal_folders": [kept["out"]]}
        found, other = step(options(out=f"out_{samples}", **settings, **cached), records)
        gaps[samples] = (found - online).norm().item() / online.norm().item()
        assert stats(kept)["bytes_per_token"] == SignalReader(kept["out"]).shape.bytes_per_token
    assert other["kd"] == pytest.approx(line["kd"], abs=1e-3)  # entropies are rounded to float16
    assert gaps[1024] < 0.25
    assert gaps[0] > 0.5


def test_a_sample_does_not_depend_on_the_batch_or_the_order(signal, records):
    """Of a teacher in float64, whose rounding moves no token over the end of a sampled interval."""
    made = []
    for number, (order, batch_size) in enumerate(((1, 1), (-1, 4))):
        kept = signal(out=f"signal_{number}", tail_samples=16, batch_size=batch_size)
        compute_signal(kept, records[::order], [])
        made.append(SignalReader(kept["out"]))
    assert made[0].records.keys() == made[1].records.keys()
    pairs = [[reader.read(key)["tail_ids"] for reader in made] for key in made[0].records]
    same = torch.cat([(one == other).flatten() for one, other in pairs]).float().mean()
    assert same > 0.999
    # Other random numbers of the same distributions would draw others.
    spread = torch.cat([one.roll(1, 0).flatten() == other.flatten() for one, other in pairs]).float().mean()
    assert spread < 0.5


@pytest.mark.parametrize("kind", ["hidden", "topk"])
def test_signals_belong_to_records_not_to_places(cached, signal, records, kind):
    """Another computing order, other micro-batches and several epochs give the same weights."""
    settings = {"optimizer": "sgd", "learning_rate": 0.5, "epochs": 3.0}
    first = cached(records, kind, out="first", batch_size=4, gradient_accumulation_steps=1, **settings)
    train_student(first, records, [])
    other = cached(records[::-1], kind, out="other", signal_out="turned", batch_size=1, **settings)
    train_student(change_run(other, gradient_accumulation_steps=4), records, [])
    assert_same_weights(weights(other), weights(first), rtol=1e-4, atol=1e-5)
    assert log_lines(first)[0]["kd"] > 0


@pytest.mark.parametrize("kind", ["hidden", "topk"])
def test_a_killed_training_from_a_cache_ends_with_the_same_weights(cached, records, monkeypatch, kind):
    settings = {"save_steps": 1, "gradient_checkpointing": False}
    undisturbed = cached(records, kind, out="undisturbed", **settings)
    train_student(undisturbed, records, [])
    run = cached(records, kind, out="killed", **settings)
    trained = student_module.DistillTrainer.training_step
    with monkeypatch.context() as patch:

        def stop(self, *arguments):
            if self.state.global_step == 3:
                raise Killed
            return trained(self, *arguments)

        patch.setattr(student_module.DistillTrainer, "training_step", stop)
        with pytest.raises(Killed):
            train_student(run, records, [])
    train_student(run, records, [])
    assert_same_weights(weights(run), weights(undisturbed), rtol=0, atol=0)


# ---- No teacher in memory ----


def test_three_students_of_one_signal_open_no_teacher_weights(cached, signal, tmp_path, models, records):
    data = write_splits(tmp_path / "data", records, [])
    kept = signal("topk", "signal")
    compute_signal(kept, records, [])
    from_cache = ["--signal", "topk", "--top-k", 8, "--signal-folders", kept["out"]]
    for method in ("forward_kl", "reverse_kl", "jsd"):
        arguments = make_arguments(tmp_path, models, method, f"out_{method}", data)
        with watch_opened(models["teacher"]) as opened:
            train_script.main([*map(str, arguments), *map(str, from_cache)])
        assert "config.json" in opened  # the tokenizer is the teacher's; also shows that opened files are recorded
        assert "model.safetensors" not in opened
    with watch_opened(models["teacher"]) as opened:
        train_script.main(make_arguments(tmp_path, models, "jsd", "out_online", data))
    assert "model.safetensors" in opened


# ---- Records, and teachers, that do not belong ----


def test_a_record_without_a_signal_is_refused(cached, records):
    run = cached(records[:-2])
    with pytest.raises(InputError, match=f"2 of 10 have none, first uid {records[8]['uid']}"):
        train_student(run, records, [])
    run = cached(records, signal_out="changed")
    with pytest.raises(InputError, match=f"1 of 10 have none, first uid {records[3]['uid']}"):
        train_student(run, change(records, 3), [])
    with pytest.raises(InputError, match="of every record"):
        train_student(run, records, change(records[:1], 0))


def change_weights(models):
    path = Path(models["teacher"]) / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 0.1
    save_file(tensors, path, metadata={"format": "pt"})


def change_template(models):
    template = CHATML.replace("<|im_start|>assistant", "<|im_start|>expert")
    build_tokenizer(template=template).save_pretrained(models["teacher"])


@pytest.mark.parametrize(
    ("alter", "changes", "message"),
    [
        (change_weights, {}, "teacher weights"),
        (change_template, {}, "the teacher's chat template"),
        (None, {"teacher_quantization": "int8"}, "quantization: expected int8, found none"),
        (None, {"teacher_dtype": "bfloat16"}, "dtype: expected bfloat16, found float32"),
        (None, {"top_k": 16}, "top_k: expected 16, found 8"),
        (None, {"tail_samples": 4}, "tail_samples: expected 4, found 0"),
        (None, {"temperature": 3.0}, "temperature: expected 3.0 among those stored, found 2.0"),
        (None, {"signal": "hidden", "top_k": None}, "kind: expected hidden, found topk"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_signal_of_another_teacher_is_refused(cached, models, records, alter, changes, message):
    run = change_run(cached(records), **changes)
    if alter:
        alter(models)
    with pytest.raises(InputError, match=f"this signal is from another teacher(?s:.*){message}") as refused:
        train_student(run, records, [])
    assert "--forcerun" in str(refused.value)
    assert str(run.teacher.signal_folders[0] / "index.json") in str(refused.value)
    assert not run.out.exists()


def test_a_teacher_that_was_touched_or_copied_is_the_same(cached, models, records, tmp_path):
    run = cached(records)
    os.utime(Path(models["teacher"]) / "model.safetensors", (1, 1))
    train_student(run, records, [])
    shutil.copytree(models["teacher"], tmp_path / "copy")
    train_student(change_run(run, teacher_model=str(tmp_path / "copy"), out=tmp_path / "again"), records, [])
    assert_same_weights(weights(run), load_file(tmp_path / "again" / "model.safetensors"), rtol=0, atol=0)


DATED = "{{ strftime_now('%d %b %Y') }}{% if not enable_thinking | default(true) %}brief{% endif %}" + CHATML


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template_date": "2025-01-31"}, "template_date: expected 2025-01-31, found 2024-07-26"),
        ({"template_arguments": {"enable_thinking": False}}, "template_arguments: expected {'enable_thinking': False}"),
    ],
)
def test_a_signal_of_another_rendering_is_refused(cached, signal, models, records, settings, message):
    build_tokenizer(template=DATED).save_pretrained(models["teacher"])
    run = cached(records)
    train_student(run, records, [])  # on whatever day: the date is the experiment's
    source = {f"teacher_{name}" if name == "template_arguments" else name: part for name, part in settings.items()}
    with pytest.raises(InputError, match=re.escape(message)):
        train_student(change_run(run, out=run.out / "other", **source), records, [])
    with pytest.raises(InputError, match=re.escape(message)):
        signal_jobs.compare_signal(signal() | settings | {"signal": run.teacher.signal_folders[0]}, records)


def test_the_template_alone_decides_the_fingerprint_by_default(signal, tokenizer):
    found = signal_jobs.get_parts(signal(), ChatTemplate(tokenizer))
    assert not {"template_date", "template_arguments"} & set(found)
    assert found["template"] == digest_of(tokenizer.chat_template)[:16]


def age_index(path):
    index = json.loads(path.read_text())
    index["parts"]["format"] -= 1
    path.write_text(json.dumps(index))


def age_shard(path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata | {"format": str(int(metadata["format"]) - 1)})


def shorten(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("index.json", Path.unlink, "expected the index of a teacher signal, found none"),
        ("index.json", lambda path: path.write_text("[]"), "expected the index of a teacher signal"),
        ("index.json", lambda path: path.write_text("{"), "expected the index of a teacher signal"),
        ("index.json", lambda path: path.write_text('{"parts": {"format": 9}, "records": {}}'), "expected the index"),
        ("index.json", age_index, "expected format 1 of signal hidden, found format 0"),
        ("00000.safetensors", age_shard, "expected a shard.* of signal hidden, found 0"),
        ("00000.safetensors", Path.unlink, "expected a shard of the teacher signal"),
        ("00000.safetensors", shorten, "expected a shard of the teacher signal"),
        ("head.safetensors", Path.unlink, "expected the teacher's head, found none"),
    ],
)
def test_a_broken_signal_says_what_is_broken_and_how_to_make_it_anew(cached, records, name, damage, message):
    run = cached(records, "hidden")
    (path,) = run.teacher.signal_folders[0].rglob(name)
    damage(path)
    with pytest.raises(InputError, match=f"{name}: {message}(?s:.*)--forcerun"):
        train_student(run, records, [])


# ---- Computing ----


class NoTeacher:
    def __init__(self, *_):
        raise AssertionError("a teacher was loaded")


@pytest.mark.parametrize("kind", ["hidden", "topk"])
def test_what_is_there_is_not_computed_again(signal, records, monkeypatch, kind):
    kept = signal(kind)
    compute_signal(kept, records[:8], records[8:])
    files = {path: path.stat().st_mtime_ns for path in data_folder(kept).glob("*.safetensors")}
    index = (Path(kept["out"]) / "index.json").read_bytes()
    monkeypatch.setattr(signal_jobs, "SignalTeacher", NoTeacher)
    # Snakemake removes a rule's outputs before it runs again; a record may move to another split.
    (Path(kept["out"]) / "index.json").unlink()
    compute_signal(kept, records[2:], records[:2])
    assert {path: path.stat().st_mtime_ns for path in data_folder(kept).glob("*.safetensors")} == files
    assert (Path(kept["out"]) / "index.json").read_bytes() == index
    assert (stats(kept)["from_cache"], stats(kept)["computed"]) == (10, 0)


def test_a_changed_record_is_computed_alone(signal, records, monkeypatch):
    kept = signal()
    compute_signal(kept, records, [])
    seen, compared = [], []
    teacher = signal_teacher.SignalTeacher
    compute, compare = teacher.compute, teacher.compare
    monkeypatch.setattr(
        teacher,
        "compute",
        lambda self, examples: (seen.extend(one["uid"] for one in examples), compute(self, examples))[1],
    )
    monkeypatch.setattr(
        teacher, "compare", lambda self, example, kept: (compared.append(example), compare(self, example, kept))[1]
    )
    compute_signal(kept, change(records, 4), [])
    assert seen == [records[4]["uid"]]
    # A few cached records are first compared with the live teacher.
    assert len(compared) == signal_jobs.COMPARED
    assert (stats(kept)["from_cache"], stats(kept)["computed"]) == (9, 1)
    assert len(SignalReader(kept["out"]).records) == 10


def test_another_epoch_seed_or_place_of_the_records_changes_no_key(records, tokenizer):
    prompt, completion = encode(records[0], tokenizer)
    assert signal_key(prompt, completion) != signal_key(prompt[:-1], [prompt[-1], *completion])
    assert signal_key(prompt, completion) != signal_key(prompt, completion[:-1])
    keys, left_out = signal_jobs.encode(records, ChatTemplate(tokenizer), 1000)
    again, _ = signal_jobs.encode(
        [record | {"id": 0, "uid": "x", "label": None} for record in records], ChatTemplate(tokenizer), 1000
    )
    assert (list(keys), left_out) == (list(again), 0)


@pytest.mark.parametrize("kind", ["hidden", "topk"])
def test_a_kill_loses_no_shard_that_is_whole(signal, records, monkeypatch, caplog, kind):
    caplog.set_level(logging.INFO)
    undisturbed = signal(kind, "undisturbed", batch_size=2)
    compute_signal(undisturbed, records, [])
    kept = signal(kind, "killed", batch_size=2)
    save, saved = signal_shards.save_whole, []

    def stop(path, tensors, metadata=None):
        if metadata and len(saved) == 3:
            # As after a power cut while the file is written.
            save(path, tensors, metadata)
            shorten(path)
            raise Killed
        save(path, tensors, metadata)
        saved.append(path) if metadata else None

    with monkeypatch.context() as patch:
        patch.setattr(signal_shards, "SHARD_BYTES", 1)
        patch.setattr(signal_shards, "save_whole", stop)
        with pytest.raises(Killed):
            compute_signal(kept, records, [])
    assert not (Path(kept["out"]) / "index.json").exists()
    compute_signal(kept, records, [])
    assert (stats(kept)["from_cache"], stats(kept)["computed"]) == (3, 7)
    assert "expected a complete shard of the teacher signal" in caplog.text
    assert "; skipped" in caplog.text
    readers = SignalReader(kept["out"]), SignalReader(undisturbed["out"])
    assert readers[0].records.keys() == readers[1].records.keys()
    for key in readers[0].records:
        one, other = (reader.read(key) for reader in readers)
        for name in one:
            torch.testing.assert_close(one[name].float(), other[name].float(), rtol=2e-3, atol=2e-3)
    assert not list(data_folder(kept).glob(".*.tmp"))


def test_signals_that_are_not_the_live_teachers_stop_the_run(signal, records):
    kept = signal("hidden")
    compute_signal(kept, records, [])
    (path,) = data_folder(kept).glob("0*.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    save_file(tensors | {"hidden": tensors["hidden"].roll(1, 0)}, path, metadata)
    with pytest.raises(InputError, match=r"00000.safetensors: expected the signal of this teacher"):
        compute_signal(kept, change(records, 4), [])


@pytest.mark.parametrize("kind", ["hidden", "topk"])
def test_rounding_of_16_bits_is_no_other_teacher(signal, records, tokenizer, tmp_path, kind):
    """Large logits differ by tenths between batch shapes, but give the same distribution."""
    loud = save_model(tmp_path / "loud", tokenizer, vocabulary=352, hidden=32, seed=1, scale=110.0)
    kept = signal(kind, model=loud, dtype="bfloat16")
    compute_signal(kept, records, [])
    (path,) = data_folder(kept).glob("0*.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    name = "hidden" if kind == "hidden" else "logprobs"
    torch.manual_seed(0)
    flips = 1 + (torch.randint(-1, 2, tensors[name].shape) * 2.0**-8 if kind == "hidden" else 0.0)
    moved = (tensors[name].float() * flips).to(tensors[name].dtype)
    save_file(tensors | {name: moved}, path, metadata)
    compute_signal(kept, change(records, 4), [])
    assert stats(kept)["computed"] == 1
    if kind == "hidden":
        teacher = signal_teacher.SignalTeacher(kept, tokenizer, len(tokenizer))
        example = next(iter(signal_jobs.encode(records, ChatTemplate(tokenizer), 1000)[0].values()))
        reader = SignalReader(kept["out"])
        divergence, largest = teacher.compare(
            example, reader.read(signal_key(example["prompt"], example["completion"]))
        )
        assert divergence < 0.02
        assert largest > 0.25


def test_a_signal_of_logits_that_are_not_numbers_is_refused(tmp_path):
    found = top_log_probabilities(torch.full((2, 30), torch.nan), 4, [1.0])
    writer = signal_shards.ShardWriter(tmp_path, SignalShape("topk", None, 4, [1.0], 30))
    with pytest.raises(InputError, match="teacher signal abc in .*: expected log-probabilities that descend from"):
        writer.add("abc", found | {"completion": torch.zeros(2, dtype=torch.int32)})


def test_what_no_record_uses_is_removed(signal, records, models):
    kept = signal()
    compute_signal(kept, records[:5], [])
    compute_signal(kept, records[5:], [])
    assert [path.name for path in data_folder(kept).glob("*.safetensors")] == ["00001.safetensors"]
    before = data_folder(kept).name
    change_weights(models)
    compute_signal(kept, records[5:], [])
    assert data_folder(kept).name != before  # the only one


def test_long_records_are_left_out_as_in_training(signal, records, tokenizer, caplog):
    lengths = sorted(sum(map(len, encode(record, tokenizer))) for record in records)
    kept = signal(max_length=lengths[6])
    fitting = sum(length <= lengths[6] for length in lengths)
    compute_signal(kept, records, [])
    assert (stats(kept)["records"], stats(kept)["left_out"]) == (fitting, 10 - fitting)
    with pytest.raises(InputError, match="10 of 10 are longer than max_length = 3"):
        compute_signal(signal(max_length=3), records, [])


def test_of_a_pooled_student_each_category_has_its_own_adapters_signal(options, signal, models, records, tmp_path):
    folders, adapters = [], []
    for number, name in enumerate(("banks", "households")):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_pretrained(models["teacher"])
        lora = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        get_peft_model(model, lora).save_pretrained(tmp_path / name)
        adapters.append(str(tmp_path / name))
        kept = signal("topk", f"signal_{name}", adapter=adapters[-1])
        compute_signal(kept, records[5 * number :][:5], [])
        folders.append(kept["out"])
    run = options(signal="topk", top_k=8, signal_folders=folders, teacher_adapter=adapters)
    student_module.train_student(run, [records[:5], records[5:]], [[], []])
    assert log_lines(run)[-1]["kd"] > 0
    with pytest.raises(InputError, match="teacher weights"):
        student_module.train_student(
            change_run(run, teacher_adapter=adapters[::-1]), [records[:5], records[5:]], [[], []]
        )


@pytest.mark.parametrize("kind", ["hidden", "topk"])
def test_a_pooled_student_learns_each_record_from_its_own_teacher(options, signal, models, records, tmp_path, kind):
    """Teachers of different widths; the divergence of the first step is that of a float64 formula."""
    tokenizer = AutoTokenizer.from_pretrained(models["teacher"])
    wide = save_model(tmp_path / "wide", tokenizer, vocabulary=400, hidden=48, seed=7, scale=4.0)
    folders, sources, total, tokens = [], [], 0.0, 0
    student = AutoModelForCausalLM.from_pretrained(models["student"]).double()
    for number, name in enumerate((models["teacher"], wide)):
        own = records[number::2]  # the records of a batch are of both
        kept = signal(kind, f"signal_{number}", model=name)
        compute_signal(kept, own, [])
        folders.append(kept["out"])
        sources.append(TeacherSource(model=name, dtype="float32"))
        teacher = AutoModelForCausalLM.from_pretrained(name).double()
        for record in own:
            divergence, count = measure_divergence(student, teacher, encode(record, tokenizer), len(tokenizer), kind)
            total, tokens = total + divergence, tokens + count
    changes = {"signal": kind, "top_k": 8 if kind == "topk" else None, "signal_folders": folders}
    run = options(epochs=1.0, gradient_accumulation_steps=5, logging_steps=1, **changes)
    run = replace(run, teacher=replace(run.teacher, by_folder=tuple(sources)))
    student_module.train_student(run, [records[::2], records[1::2]], [[], []])
    assert log_lines(run)[0]["kd"] == pytest.approx(total / tokens, rel=2e-3)
    card = (run.out / "README.md").read_text()
    assert f"from `{models['teacher']}`, `{wide}`, on 10 training" in card
    swapped = replace(run, teacher=replace(run.teacher, by_folder=tuple(sources[::-1])))
    with pytest.raises(InputError, match="teacher weights"):
        student_module.train_student(swapped, [records[::2], records[1::2]], [[], []])


def measure_divergence(student, teacher, tokens, shared, kind):
    """The sum of KL(p‖q) at temperature 2 over a completion, with `topk` over 8 + 1 buckets, and its length."""
    prompt, completion = tokens
    with torch.no_grad():
        p, q = (
            (model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1, :shared] / 2).softmax(-1)
            for model in (teacher, student)
        )
    if kind == "topk":
        top = p.topk(8).indices
        p, q = (torch.cat([kept := one.gather(-1, top), 1 - kept.sum(-1, keepdim=True)], dim=-1) for one in (p, q))
    return (p * (p / q).log()).sum().item(), len(completion)


# ---- Storage ----


@pytest.mark.parametrize(("kind", "width"), [("hidden", 32), ("topk", None)])
def test_bytes_a_token_are_those_of_the_shards(signal, records, kind, width):
    kept = signal(kind, temperatures=[1.0, 2.0] if kind == "topk" else [])
    compute_signal(kept, records, [])
    found = stats(kept)
    tensors = load_file(data_folder(kept) / "00000.safetensors")
    assert found["bytes"] == sum(tensor.nbytes for tensor in tensors.values())
    shape = SignalShape(kind, width, 8, [1.0, 2.0], SignalReader(kept["out"]).vocabulary)
    assert found["bytes_per_token"] == shape.bytes_per_token
    assert found["tokens"] == len(tensors["completion"])


def test_what_the_kept_tokens_leave_out_is_measured_and_said(signal, models, records, tokenizer, caplog):
    kept = signal(temperatures=[1.0, 2.0])
    compute_signal(kept, records, [])
    model = AutoModelForCausalLM.from_pretrained(models["teacher"]).double()
    tails = []
    for prompt, completion in (encode(record, tokenizer) for record in records):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1, : len(tokenizer)]
        tails += [[1 - (logits / tau).softmax(-1).topk(8).values.sum(-1) for tau in (1.0, 2.0)]]
    wanted = [torch.cat(column).mean().item() for column in zip(*tails, strict=True)]
    found = stats(kept)["tail_probability"]
    assert list(found) == ["1", "2"]
    assert list(found.values()) == [pytest.approx(one, abs=2e-3) for one in wanted]
    assert wanted[1] > 0.1
    assert "at temperature 2, the 8 most likely tokens have" in caplog.text
    assert "hidden is closer" in caplog.text


def test_bytes_a_token_of_a_7b_teacher():
    """Ids take 18 bits. The lower 9 bits of 64 log-probabilities lie beside a bit map of 64 + 63 bits."""
    assert SignalShape("hidden", 3584).bytes_per_token == 7168 + 4
    topk = SignalShape("topk", None, 64, [2.0], 151_665)
    assert topk.bytes_per_token == 64 * 18 // 8 + (64 * 9 // 8 + 16) + 2 + 3 == 237


def test_a_disk_that_is_too_small_is_said_before_a_teacher_is_loaded(signal, records, monkeypatch, tmp_path):
    monkeypatch.setattr(signal_jobs, "SignalTeacher", NoTeacher)
    asked = []
    monkeypatch.setattr(disk, "find_free", lambda folder: asked.append(Path(folder)) or 1000)
    with pytest.raises(InputError, match=r"kB of free disk for the teacher signal, found 1 kB; .* set `signals` to a"):
        compute_signal(signal(store=tmp_path / "disk"), records, [])
    assert {path.parent.resolve() for path in asked} == {tmp_path / "disk/data"}


def test_tokens_are_counted_from_what_there_is(tmp_path):
    answers, prompts = tmp_path / "answers.jsonl", tmp_path / "prompts.jsonl"
    half = SplitOptions(val_fraction=Fraction("0.2"), test_fraction=Fraction("0.5"))
    assert count_tokens(answers, prompts, 100, half) == (0, "")
    asked = [{"uid": get_uid("S", f"prompt {number}"), "system": "S", "prompt": str(number)} for number in range(60)]
    write_jsonl(prompts, asked)
    kept = sum(get_split(one["uid"], half.seed, half.val_fraction, half.test_fraction) != "test" for one in asked)
    assert 20 < kept < 40
    assert count_tokens(answers, prompts, 100, half) == (kept * 100, "at most ")
    answers.write_text('{"generated_tokens": 7, "usable": true}\n')
    assert count_tokens(answers, prompts, 100, half) == (0, "")  # malformed


@pytest.mark.parametrize("original_fraction", ["0", "0.4", "1"])
def test_estimated_tokens_are_those_of_the_computed_signal(signal, tokenizer, tmp_path, original_fraction):
    """The test split and unusable answers do not count; original answers count at their own length."""
    chat, answers, out = ChatTemplate(tokenizer), tmp_path / "answers.jsonl", tmp_path / "data"
    known = {"system": "You are a manager.", "label": None, "origin": "alpaca", "finish_reason": "stop"}
    lines = []
    for number in range(80):
        for sample in range(1 + number % 2):
            text, prompt = f"me {number} more" * (1 + sample + number % 5), f"prompt {number}"
            made = {"id": number, "sample": sample, "uid": get_uid(known["system"], prompt), "prompt": prompt}
            made |= {"raw_output": text, "generated_tokens": len(chat.encode_completion(text, True))}
            made |= {"original_output": text * 3, "usable": number % 7 > 0, "problem": None if number % 7 else "empty"}
            lines.append(known | made)
    write_jsonl(answers, lines)
    options = SplitOptions(val_fraction=Fraction("0.2"), test_fraction=Fraction("0.3"), seed=7)
    split = options.val_fraction, options.test_fraction, options.seed, out, Fraction(original_fraction)
    split_answers(answers, *split)
    kept = signal(temperatures=[2.0])
    compute_signal(kept, read_split(out, "train"), read_split(out, "val"))
    estimate, qualifier = count_tokens(answers, tmp_path / "prompts", 0, options, Fraction(original_fraction))
    assert qualifier == "about "
    # The end of a turn is one token, whatever the length: of original answers it is counted in proportion.
    assert estimate == pytest.approx(stats(kept)["tokens"], rel=0 if original_fraction == "0" else 0.1)


def test_storage_is_said_in_one_line(models, tmp_path):
    line = describe_storage("topk_64 of banks", SignalShape("topk", None, 64, [2.0], 151_665), 1_000_000, "about ")
    assert line == "teacher signal topk_64 of banks: 237 bytes per token, about 1,000,000 tokens, 0.237 GB"
    assert "7,172 bytes per completion token" in describe_storage("hidden", SignalShape("hidden", 3584), 0)
    assert "unknown until" in describe_storage("hidden", SignalShape("hidden"), 5)
    assert "unknown until" in describe_storage("topk", SignalShape("topk", 3584, 64, [2.0]), 5)
    assert read_sizes(models["teacher"]) == (32, 352)
    assert read_sizes(str(tmp_path / "nothing")) == (None, None)
    assert read_sizes("not an id: //") == (None, None)


def test_storage_imports_no_torch():
    done = run_python("import sys; from distill.teacher import signal_size; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


# ---- check_signal.py and the command lines ----


def check(signal, data, *more):
    arguments = ["--signal", str(signal["out"]), "--data", str(data), "--model", signal["model"], "--dtype", "float32"]
    check_signal.main([*arguments, "--device", "cpu", *more])


@pytest.mark.parametrize("kind", ["hidden", "topk"])
def test_check_finds_what_is_right_and_what_is_wrong(signal, records, tmp_path, capsys, kind):
    data = write_splits(tmp_path / "data", records[:8], records[8:])
    kept = signal(kind)
    compute_signal(kept, records[:8], records[8:])
    check(kept, data, "--records", "4")
    printed = capsys.readouterr().out
    assert "4 records: largest divergence" in printed
    (path,) = data_folder(kept).glob("0*.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors, name = load_file(path), "hidden" if kind == "hidden" else "log_tail"
    save_file(tensors | {name: torch.zeros_like(tensors[name])}, path, metadata)
    with pytest.raises(SystemExit) as ended:
        check(kept, data, "--records", "10")
    assert ended.value.code == 1
    assert "the signal is from another teacher" in capsys.readouterr().err


def test_check_refuses_other_teachers_and_other_data(signal, records, tmp_path, models, capsys):
    kept = signal()
    compute_signal(kept, records[:5], [])
    with pytest.raises(InputError, match="expected signals of the records in"):
        check(kept, write_splits(tmp_path / "other", records[5:], []))
    change_weights(models)
    with pytest.raises(InputError, match="this signal is from another teacher"):
        check(kept, write_splits(tmp_path / "data", records[:5], []))


def test_a_sampled_tail_needs_topk(capsys):
    with pytest.raises(SystemExit):
        script.parse_args(["--data", "x", "--kind", "hidden", "--tail-samples", "8", "--model", "m", "--out", "o"])
    assert "--tail-samples needs --kind topk" in capsys.readouterr().err


def test_topk_needs_k_and_temperatures(capsys):
    with pytest.raises(SystemExit):
        script.parse_args(["--data", "x", "--kind", "topk", "--model", "m", "--out", "o"])
    assert "--kind topk needs --top-k and --temperatures" in capsys.readouterr().err


def test_the_script_computes_what_the_splits_hold(signal, records, tmp_path, models):
    data = write_splits(tmp_path / "data", records[:8], records[8:])
    argv = ["--data", str(data), "--kind", "hidden", "--model", models["teacher"], "--dtype", "float32"]
    script.main([*argv, "--device", "cpu", "--out", str(tmp_path / "out"), "--examples", str(tmp_path / "examples")])
    assert stats({"out": tmp_path / "out"})["records"] == 10


def test_a_tied_head_is_stored_as_well(signal, models, records, tokenizer):
    save_model(Path(models["teacher"]), tokenizer, vocabulary=352, hidden=32, seed=1, tied=True)
    kept = signal("hidden")
    compute_signal(kept, records, [])
    head = SignalReader(kept["out"]).head(torch.device("cpu"))
    tied = build_model(352, 32, seed=1, tied=True)
    assert torch.equal(head.weight, tied.get_input_embeddings().weight)


class StoredHead:
    """A reader of signals with a head."""

    transform = IDENTITY

    def __init__(self, folder, linear):
        self.folder, self.linear = folder, linear

    def head(self, device, dtype):
        return self.linear


def test_heads_that_differ_in_their_bias_only_are_told_apart():
    """As those of two adapters with `bias: all` on a model whose head has a bias."""
    heads = [torch.nn.Linear(3, 5) for _ in range(3)]
    for head in heads[1:]:
        head.load_state_dict(heads[0].state_dict())
    readers = [StoredHead(str(number), head) for number, head in enumerate(heads)]
    assert len(HiddenSignal(readers, torch.device("cpu"), [torch.float32] * 3).heads) == 1
    heads[2].bias.data[1] += 2.0
    signal = HiddenSignal(readers, torch.device("cpu"), [torch.float32] * 3)
    assert (len(signal.heads), signal.numbers) == (2, [0, 0, 1])


# ---- What the teacher alone sees ----


@pytest.mark.parametrize("kind", ["hidden", "topk"])
def test_a_text_that_the_teacher_alone_sees_is_in_its_signal(cached, records, tokenizer, kind):
    own = [record | {"teacher_prompt": "Think of risk."} for record in records]
    run = cached(own, kind)
    train_student(run, own, [])  # every record has its signal
    reader = SignalReader(run.teacher.signal_folders[0])
    system = {"role": "system", "content": "Think of risk.\n\nYou are a manager."}
    joined = [record | {"messages": [system, *record["messages"][1:]]} for record in records]
    assert set(reader.records) == {signal_key(*encode(record, tokenizer)) for record in joined}


def test_progress_is_reported(signal, records, monkeypatch):
    reported = Reported(monkeypatch)
    compute_signal(signal("topk"), records, [])
    ((first, last),) = reported.get_ends().values()
    assert (first["done"], first["total"]) == (0, len(records))
    assert (last["done"], last["seconds_left"]) == (len(records), 0)
    assert last["tokens_per_second"] > 0
    assert last["memory_mb"] > 0
