"""Answers, likelihoods and logits on the GPU are the CPU's; quantized models are near the unquantized ones."""

import pytest
import torch
from tiny import save_model

from distill.export.export_model import compare_logits, read_logits
from distill.generation.generate import decode_padded, decode_rolling
from distill.generation.kv_cache import RowLimit
from distill.generation.rolling_batch import Job, RollingBatch
from distill.generation.sampling import Request, Sampling
from distill.generation.transformers_engine import ModelSource, TransformersEngine
from distill.models.load import load_model
from distill.teacher.signal_teacher import SignalTeacher

GREEDY = Sampling(max_new_tokens=24, temperature=0.0)
SAMPLED = Sampling(max_new_tokens=24, temperature=1.0, seed=5)
NUCLEUS = Sampling(max_new_tokens=24, temperature=1.0, top_p=0.9, top_k=40, seed=5)


@pytest.fixture
def model(tmp_path, tokenizer):
    """The folder of a model whose answers depend on all of its layers."""
    return save_model(tmp_path / "model", tokenizer, hidden=64, layers=3, scale=8.0)


@pytest.fixture
def requests(prompts):
    """Requests of many lengths, some with a common prefix."""
    texts = [prompt["prompt"] for prompt in prompts]
    texts += [f"me=12.5, profit=0.31: {word * 20} {number * word}" for word in ("a", "up") for number in range(1, 6)]
    return [Request(number, f"uid{number}", "You are a manager.", text) for number, text in enumerate(texts)]


def make_engine(model, device, sampling=GREEDY, batch_size=None, **settings):
    source = ModelSource(model, device=device, **{"dtype": "float32"} | settings)
    return TransformersEngine(source, sampling, batch_size)


def answer(*arguments, requests, **settings):
    engine = make_engine(*arguments, **settings)
    return {request.key: answer for pairs in engine.generate(requests) for request, answer in pairs}


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, NUCLEUS], ids=["greedy", "sampled", "top_p"])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_answers_in_float32_are_those_of_the_cpu(model, requests, device, sampling, batch_size):
    wanted = answer(model, "cpu", sampling, 1, requests=requests)
    found = answer(model, device, sampling, batch_size, requests=requests)
    assert len(wanted) == len(requests)
    assert len({one.text for one in wanted.values()}) > len(requests) / 2
    assert found == wanted


@pytest.mark.parametrize("decode", [decode_rolling, decode_padded])
def test_both_ways_to_decode_give_the_same_tokens(model, tokenizer, device, decode):
    def run(place, size):
        loaded = load_model(model, torch.device(place), torch.float32)
        prompts = [[5 + index] * (3 + 7 * index) for index in range(6)]
        job = Job(prompts, [12] * 6, [2], None, lambda logits, _: logits.argmax(-1))
        return dict(pair for finished in decode(loaded, tokenizer, job, size) for pair in finished)

    def cut(tokens):
        return tokens[: tokens.index(2) + 1] if 2 in tokens else tokens

    found, wanted = (
        {index: cut(list(one)) for index, one in run(*place).items()} for place in ((device, 4), ("cpu", 1))
    )
    assert found == wanted


@pytest.mark.parametrize(
    ("dtype", "quantization", "largest"),
    [
        ("float32", "none", 1e-4),
        ("bfloat16", "none", 0.03),
        ("float16", "none", 0.01),
        ("bfloat16", "int8", 0.15),
        ("bfloat16", "nf4", 0.3),
    ],
)
def test_logits_are_near_the_exact_ones(model, requests, device, dtype, quantization, largest):
    """The distance relative to the norm of the CPU's logits in float32; quantized models generate, too."""
    ids = list(range(10, 60))
    engine = make_engine(model, device, dtype=dtype, quantization=quantization)
    distance, agreement = compare_logits(
        read_logits(engine.model, ids), read_logits(load_model(model, torch.device("cpu"), torch.float32), ids)
    )
    assert distance < largest
    assert agreement > 1 - max(largest, 0.05)
    answers = [one for pairs in engine.generate(requests) for one in pairs]
    assert len(answers) == len(requests)
    assert engine.peak_memory_mb() > 0


def test_likelihoods(model, device):
    prompts, completions = [[5] * length for length in range(3, 23)], [[4, 5, 6, 7][: 1 + n % 4] for n in range(20)]
    found, wanted = (make_engine(model, place).score_completions(prompts, completions) for place in (device, "cpu"))
    assert [(one.tokens, one.hits) for one in found] == [(one.tokens, one.hits) for one in wanted]
    assert [one.nll for one in found] == pytest.approx([one.nll for one in wanted], rel=1e-4)


@pytest.mark.parametrize("kind", ["hidden", "topk"])
def test_signals(model, tokenizer, device, kind):
    examples = [{"prompt": [5 + n] * (3 + n), "completion": [4, 5, 6, 2][n % 3 :]} for n in range(8)]
    options = {"model": model, "adapter": None, "dtype": "float32", "quantization": "none"}
    options |= {"kind": kind, "top_k": 8, "temperatures": [1.0, 2.0], "tail_samples": 6}
    teachers = [SignalTeacher(options | {"device": place}, tokenizer, len(tokenizer)) for place in (device, "cpu")]
    found, wanted = (teacher.compute(examples) for teacher in teachers)
    for example, one, other in zip(examples, found, wanted, strict=True):
        assert {tensor.device.type for tensor in one.values()} == {"cpu"}
        assert one["completion"].tolist() == example["completion"]
        for name in set(one) - {"ids", "tail_ids", "completion"}:  # stored in 16 bits
            torch.testing.assert_close(one[name].float(), other[name].float(), rtol=1e-2, atol=1e-2)
        if kind == "topk":  # a place at the edge of a token's interval may be the next token's
            assert (one["tail_ids"] == other["tail_ids"]).float().mean() > 0.9
    for teacher, cached in zip(teachers, (wanted, found), strict=True):
        divergence, _ = teacher.compare(examples[0], cached[0])
        assert abs(divergence) < 1e-3


def test_a_batch_that_does_not_fit_is_halved(tmp_path, tokenizer, device, monkeypatch, caplog):
    """The second run has memory for about half of the first one's rows, and the same answers."""
    size = {"hidden": 64} if device == "cpu" else {"hidden": 1024, "layers": 4}
    folder = save_model(tmp_path / "large", tokenizer, scale=8.0, **size)
    loaded = load_model(folder, torch.device(device), torch.float32)
    length = 20 if device == "cpu" else 1000
    prompts = [[5 + index] * length for index in range(32)]
    job = Job(prompts, [6] * 32, [2], None, lambda logits, _: logits.argmax(-1))

    def run():
        batch = RollingBatch(loaded, job, RowLimit(32, {loaded.device: 1}))
        return {index: list(tokens) for finished in batch.run() for index, tokens in finished}, batch.limit.size

    weights = torch.cuda.memory_allocated() if device == "cuda" else 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    wanted, rows = run()
    assert rows == 32
    if device == "cuda":
        room = weights + 0.6 * (torch.cuda.max_memory_allocated() - weights)
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)
    else:
        step = RollingBatch.step

        def fail_above_16(self):
            if len(self.rows) > 16:
                raise torch.OutOfMemoryError("out of memory")
            return step(self)

        monkeypatch.setattr(RollingBatch, "step", fail_above_16)
    found, rows = run()
    assert rows < 32
    assert "out of memory: continuing with at most" in caplog.text
    assert found == wanted
