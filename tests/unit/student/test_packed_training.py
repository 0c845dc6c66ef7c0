"""Training on packed rows: the same steps as on a row for each record, in fewer micro-batches."""

import random

import pytest
import torch
from architectures import build
from tiny import build_tokenizer
from training_runs import assert_same_weights, change_run, log_lines, train_student, weights

from distill.common.errors import InputError
from distill.models.completions import collate
from distill.student.step_batches import pack_step
from distill.student.student_run import list_card_settings, list_result_settings
from distill.student.trainer import DistillTrainer

PACKED = {"packing": True, "max_length": 150}  # two of the fixture's records, which have 65 to 71 tokens, in a row
# A step is the gradient itself, and clipping shows its size.
PLAIN = {"optimizer": "sgd", "learning_rate": 0.5, "warmup_ratio": 0.0, "epochs": 2.0}


def train_both_ways(options, records, monkeypatch, method="forward_kl", **changes):
    """Two runs, packed and not, and the shapes of the student's micro-batches in the packed one's steps."""
    shapes = []
    score = DistillTrainer.score

    def spy(self, model, examples, scale=None):
        if self.row_length is not None and model.training:
            prompts, completions = ([one[name] for one in examples] for name in ("prompt", "completion"))
            shapes.append(tuple(collate(prompts, completions, 0, self.row_length)["input_ids"].shape))
        return score(self, model, examples, scale)

    monkeypatch.setattr(DistillTrainer, "score", spy)
    runs = []
    for out, packing in (("plain", False), ("packed", True)):
        run = change_run(options(method, out=out, **(PACKED | {"packing": packing} | changes)), **PLAIN)
        train_student(run, records[:8], records[8:])
        runs.append(run)
    return *runs, shapes


def assert_same_training(one, other):
    names = ("step", "loss", "ce", "grad_norm", "completion_tokens", "val_loss", "val_ce")
    for line, wanted in zip(log_lines(one), log_lines(other), strict=True):
        kept = [{name: found[name] for name in names if name in found} for found in (line, wanted)]
        assert kept[0] == pytest.approx(kept[1], rel=1e-4)
    assert_same_weights(weights(one), weights(other), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["forward_kl", "jsd", "seqkd"])
def test_packing_trains_the_same_student_in_fewer_micro_batches(options, records, monkeypatch, method):
    plain, packed, shapes = train_both_ways(options, records, monkeypatch, method)
    assert_same_training(packed, plain)
    assert len(shapes) == 4  # steps of four records: one micro-batch of two rows instead of two
    assert {rows for rows, _ in shapes} == {2}
    assert all(130 <= length <= 150 for _, length in shapes)


def test_a_teacher_with_longer_prompts_packs_its_own_rows(options, records, monkeypatch, models):
    """Its records fill a row each; those of the student share rows."""
    words = "You are a helpful and harmless assistant. "
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}[assistant] "
    build_tokenizer(template=words * 2 + template).save_pretrained(models["teacher"])
    plain, packed, shapes = train_both_ways(options, records, monkeypatch)
    assert_same_training(packed, plain)
    assert {rows for rows, _ in shapes} == {2}


def test_sampled_answers_are_packed_by_their_own_lengths(options, records, monkeypatch):
    settings = {"on_policy_fraction": 1.0, "on_policy_steps": 4, "on_policy_max_new_tokens": 3}
    plain, packed, shapes = train_both_ways(options, records, monkeypatch, "jsd", **settings, max_length=120)
    assert_same_training(packed, plain)
    assert len(shapes) == 4
    assert all(80 <= length <= 120 for _, length in shapes)  # with the teacher's answers no two records share a row


def test_a_part_of_a_micro_batch_is_packed_anew_when_memory_runs_out(options, records, monkeypatch):
    score, sizes = DistillTrainer.score, []

    def full(self, model, examples, scale=None):
        sizes.append(len(examples))
        if len(examples) > 2:
            raise torch.OutOfMemoryError("a test")
        return score(self, model, examples, scale)

    plain = change_run(options(out="plain", max_length=150), **PLAIN)
    train_student(plain, records[:8], [])
    monkeypatch.setattr(DistillTrainer, "score", full)
    packed = change_run(options(out="packed", **PACKED), **PLAIN)
    train_student(packed, records[:8], [])
    assert_same_training(packed, plain)
    assert sizes[:3] == [4, 2, 2]


def test_a_training_may_continue_with_and_without_packing(options):
    packed, plain = options(**PACKED), options(**(PACKED | {"packing": False}))
    assert list_result_settings(packed) == list_result_settings(plain)
    assert "packing" not in list_card_settings(packed)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_model_that_does_not_keep_records_apart_is_refused(options, records, tokenizer, tmp_path, who):
    folder = str(tmp_path / "mamba")
    build("mamba", vocab_size=352).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    run = options(**PACKED, **{"model" if who == "student" else "teacher_model": folder})
    with pytest.raises(InputError, match=r"mamba: train.packing: expected a model .* MambaForCausalLM differ by up to"):
        train_student(run, records, [])


@pytest.mark.parametrize("seed", range(10))
def test_the_micro_batches_of_a_step_have_its_records_in_full_rows(seed):
    source = random.Random(seed)
    examples = [
        {"prompt": [1] * source.randrange(1, 30), "completion": [2] * source.randrange(1, 30)} for _ in range(24)
    ]
    batches = pack_step(examples, 64, 3)
    assert sorted(map(id, (one for batch in batches for one in batch))) == sorted(map(id, examples))
    counts = []
    for batch in batches:
        packed = collate([one["prompt"] for one in batch], [one["completion"] for one in batch], 0, 64)
        counts.append(packed["input_ids"].shape[0])
        assert packed["input_ids"].shape[1] <= 64
    assert counts == [3] * (len(counts) - 1) + counts[-1:]
    assert 1 <= counts[-1] <= 3
    assert len(batches) < 8  # of three records each
