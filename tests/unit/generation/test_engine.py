"""The registry of engines: an entry alone makes an engine available everywhere."""

import pytest
from running import read_lines, run_python
from tiny import build_tokenizer, save_model
from training_runs import write_splits

import answer_questions
import generate_answers
import judge_answers
import predict_answers
from distill.common.errors import InputError
from distill.common.files import write_jsonl
from distill.evaluation.prediction_files import load_predictions
from distill.generation.engine import ENGINES, CompletionScore, EngineType, build_engine
from distill.generation.sampling import Generated, Sampling
from distill.generation.transformers_engine import ModelSource, TransformersEngine
from distill.models.load import load_chat


class Parrot:
    """An engine that repeats the prompt; it gives likelihoods without loading weights."""

    score_batch_size = 2

    def __init__(self, args):
        self.chat = load_chat(args.model)

    def fingerprint(self):
        return "parrot"

    def describe(self):
        return {"engine": "parrot"}

    def check_requests(self, requests, where):
        assert not any(request.turns for request in requests), where

    def find_overlong(self, requests):
        return {}

    def generate(self, requests):
        yield [(request, Generated(request.prompt, "stop", 2, 3)) for request in requests]

    def score_fingerprint(self):
        return self.fingerprint()

    def score_completions(self, prompts, completions):
        return [CompletionScore(1.5, len(completion), 1) for completion in completions]

    depends_on_batch = False

    def peak_memory_mb(self):
        return 0

    def peak_reserved_mb(self):
        return 0


@pytest.fixture
def register(monkeypatch):
    """Add the engine to the registry, with the given capabilities."""

    def add(**facts):
        defaults = {"loads_weights": True, "gives_likelihoods": True, "needs_gpu": False}
        monkeypatch.setitem(ENGINES, "parrot", EngineType("Repeats the prompt.", Parrot, **(defaults | facts)))

    return add


def test_a_registered_engine_generates_answers_and_likelihoods(tmp_path, register, models, records, prompts):
    register()
    engine = ["--model", models["student"], "--engine", "parrot"]
    write_jsonl(
        tmp_path / "prompts.jsonl", [p | {"id": n, "label": None, "origin": "sft"} for n, p in enumerate(prompts)]
    )
    files = [f"--{name}={tmp_path / name}" for name in ("out", "stats", "cache")]
    generate_answers.main(["--prompts", str(tmp_path / "prompts.jsonl"), *files, *engine])
    answers = read_lines(tmp_path / "out")
    assert [answer["raw_output"] for answer in answers] == [prompt["prompt"] for prompt in prompts]

    write_splits(tmp_path / "data", records, records[:2])
    out = tmp_path / "teacher/banks.predictions.jsonl"
    test = ["--test", str(tmp_path / "data/train.jsonl"), "--category", "banks", "--out", str(out)]
    predict_answers.main([*test, "--journal", str(tmp_path / "kept"), *engine])
    assert {prediction["nll"] for prediction in load_predictions([out], [])} == {1.5}

    judged = tmp_path / "judged.jsonl"
    judge_answers.main(["--predictions", str(out), "--out", str(judged), "--journal", str(tmp_path / "read"), *engine])
    assert [line["nll"] for line in read_lines(judged)] == [1.5] * len(records)


def test_capabilities_decide_which_options_are_refused(tmp_path, register, models):
    model = ["--model", models["student"], "--engine", "parrot"]
    test = ["--test", str(tmp_path / "test.jsonl"), "--category", "banks", "--out", str(tmp_path / "out")]
    questions = ["--questions", "Why?", "--system", "S", "--category", "banks", "--out", str(tmp_path / "out")]
    register(gives_likelihoods=False, loads_weights=False, needs_base_url=True)
    with pytest.raises(InputError, match="expected --no-likelihood with --engine parrot"):
        predict_answers.main([*test, *model])
    with pytest.raises(SystemExit):
        judge_answers.main(["--predictions", "p", "--out", "o", *model])
    with pytest.raises(InputError, match="--base-url: expected the server's address with --engine parrot"):
        answer_questions.main([*questions, *model])
    args = answer_questions.parse_args([*questions, *model, "--base-url", "http://h/v1", "--adapter", "a"])
    with pytest.raises(InputError, match="expected neither with --engine parrot: the server loads the model"):
        build_engine(args)
    register()
    assert isinstance(build_engine(args), Parrot)


def test_reading_the_registry_imports_nothing_heavy():
    code = (
        "import sys, distill.generation.engine; print({'torch', 'transformers', 'numpy', 'openai'} & set(sys.modules))"
    )
    assert run_python(code).stdout.strip() == "set()"


@pytest.mark.parametrize(("quantization", "times"), [("int8", 1), ("nf4", 0), ("none", 0)])
def test_the_dependence_of_int8_on_the_batch_is_logged(quantization, times, tmp_path, caplog):
    model = save_model(tmp_path / "model", build_tokenizer(), hidden=64)
    source = ModelSource(model, dtype="float32", quantization=quantization, device="cpu")
    source.load()
    assert caplog.text.count("of a record can depend on the other records of its batch") == times
    assert TransformersEngine(source, Sampling(), 1).depends_on_batch == bool(times)
