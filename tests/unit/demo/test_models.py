"""The demo's tokenizer, models and adapters: transformers and PEFT can load them, and they learn."""

import json
import math
import random
from fractions import Fraction

import pytest
import torch
from conversations import make_chat
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import train_demo_adapter
import train_demo_model
import train_demo_tokenizer
from distill.common.errors import InputError
from distill.common.files import read_jsonl, write_jsonl
from distill.demo.batches import draw_batches, encode_chats
from distill.demo.data import make_record, write_demo_data
from distill.demo.models import build_model, completion_loss, keeps_format, measure_coverage, train_to_format
from distill.demo.options import DemoStudent
from distill.demo.tokenizer import load_demo_tokenizer, read_chats, train_tokenizer
from distill.models.chat import ChatTemplate, get_end_of_turn_id
from distill.records.raw_records import get_uid
from distill.records.splits import get_split

SIZES = ["--layers", "2", "--hidden", "32", "--heads", "2", "--intermediate", "32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with raw records, a tokenizer, and a model trained for two steps."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo_data(folder, ["banks", "households"], [], 40, 60, 42)
    sft, grpo = (sorted(map(str, (folder / "artifacts" / kind).iterdir())) for kind in ("sft", "grpo"))
    train_demo_tokenizer.main(["--sft", *sft, "--grpo", *grpo, "--out", str(folder / "tokenizer")])
    arguments = ["--tokenizer", str(folder / "tokenizer"), "--sft", *sft, "--out", str(folder / "model")]
    train_demo_model.main([*arguments, *SIZES, "--vocab-size", "1088", "--steps", "2", "--batch-size", "2"])
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_demo_tokenizer(folder / "tokenizer")


@pytest.fixture(scope="module")
def chats(folder):
    return list(read_chats(sorted((folder / "artifacts" / "sft").iterdir())))


def get_sizes(**changes):
    return DemoStudent(**{"layers": 2, "hidden": 32, "heads": 2, "intermediate": 32, "vocab_size": 1088} | changes)


def build_tiny(tokenizer, vocab_size=1088, seed=0):
    return build_model(tokenizer, get_sizes(layers=1, hidden=16, intermediate=16, vocab_size=vocab_size), seed)


def test_tokenizer_is_byte_level_with_single_digits_and_chatml(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    assert len(tokenizer) <= 1024
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.tokenize("12345")[-5:] == list("12345")
    text = "Seen nowhere: 東京 ↑ “ü”\n\t − 12,345.6"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert get_end_of_turn_id(tokenizer) == tokenizer.eos_token_id
    assert len(tokenizer("<|im_start|>").input_ids) == 1


def test_placeholders_are_read_as_empty_answers(tmp_path):
    files = [tmp_path / "grpo.jsonl", tmp_path / "sft.jsonl"]
    for path, kind in zip(files, ("grpo", "sft"), strict=True):
        write_jsonl(path, [make_record("households", kind, 0, 42)])
    placeholder, answer = (chat[2] for chat in read_chats(files))
    assert placeholder == ""
    assert answer.startswith("<think>")


def test_tokenizer_has_the_requested_size():
    text = " ".join(f"{a}{b}{c}" for a in "abcdefgh" for b in "abcdefgh" for c in "abcdefgh")
    assert len(train_tokenizer([text, text], 300)) == 300


def test_encoded_records_are_trained_on_or_held_out_or_left_out(tokenizer, chats, caplog):
    caplog.set_level("INFO")
    training, held_out = encode_chats(tokenizer, [*chats, ("system", "user", "")], 4096)
    assert len(training) + len(held_out) == len(chats)
    assert 0 < len(held_out) < len(chats) / 4
    assert "121 records" in caplog.text
    assert "1 left out" in caplog.text
    prompts = [{tuple(prompt) for prompt, _ in part} for part in (training, held_out)]
    assert not prompts[0] & prompts[1]
    assert all(completion[-1] == tokenizer.eos_token_id for _, completion in training)
    lengths = sorted(len(prompt) + len(completion) for prompt, completion in training + held_out)
    shorter, also_shorter = encode_chats(tokenizer, chats, lengths[60])
    assert len(shorter) + len(also_shorter) == sum(length <= lengths[60] for length in lengths)
    with pytest.raises(InputError, match="--max-length"):
        encode_chats(tokenizer, chats, 5)


def test_batches_take_each_record_once_a_pass_and_stay_below_the_limits():
    examples = [([number] * (number + 1), [number]) for number in range(50)]
    batches = draw_batches(examples, 4, 100, random.Random(0))
    seen, longest = [], 0
    while len(seen) < 50:
        batch = next(batches)
        seen += [completion[0] for _, completion in batch]
        longest = max(longest, len(batch))
        assert len(batch) <= 4
        assert len(batch) == 1 or len(batch) * max(len(prompt) + 1 for prompt, _ in batch) <= 100
    assert sorted(seen) == list(range(50))
    assert longest == 4
    assert len(next(draw_batches(examples[-1:], 4, 10, random.Random(0)))) == 1


def test_completion_loss_is_the_mean_over_completion_tokens_alone(tokenizer):
    model = build_tiny(tokenizer).double().eval()
    batch = [([5, 6, 7, 8], [9, 10]), ([11], [12, 13, 14])]
    expected = []
    for prompt, completion in batch:
        ids = [*prompt, *completion]
        log_probs = torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)
        expected += [-log_probs[i - 1, ids[i]].item() for i in range(len(prompt), len(ids))]
    assert completion_loss(model, batch).item() == pytest.approx(sum(expected) / 5, rel=1e-10)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('<think>\nup\n</think>\n<answer>\n{"holding_log_delta": -0.12}\n</answer>', True),
        ('<answer>\n{"holding_log_delta": 0.12}\n</answer>', False),
        ('<think>\nup\n</think>\n<answer>\n{"holding_log_delta": 0.1.2}\n</answer>', False),
        ('<think>\nup\n</think>\n<answer>\n{"holding_delta": 0.12}\n</answer>', False),
        ('<think>\nup\n</think>\n<answer>\n{"holding_log_delta": 0.12}', False),
        ("", False),
    ],
)
def test_keeps_format(text, kept):
    assert keeps_format(text) is kept


def test_a_model_learns_one_answer_and_its_coverage_shows_it(tokenizer, chats):
    system, user, answer = chats[0]
    examples = encode_chats(tokenizer, [(system, f"{user}{n}", answer) for n in range(40)], 4096)
    model = build_model(tokenizer, get_sizes(), 0)
    assert measure_coverage(model, tokenizer, examples[1]) == 0
    batches = draw_batches(examples[0], 4, 4096, random.Random(0))
    coverage = train_to_format(model, tokenizer, batches, examples[1], 40, 1e-2, min_coverage=1.0, max_rounds=5)
    assert coverage == 1
    assert completion_loss(model, examples[1]).item() < math.log(2)


def test_insufficient_coverage_is_an_error(tokenizer, chats):
    training, held_out = encode_chats(tokenizer, chats, 4096)
    batches = draw_batches(training, 2, 4096, random.Random(0))
    with pytest.raises(
        InputError, match=r"0% of \d+ held-out prompts after 2 rounds of 1 steps, expected at least 90%"
    ):
        train_to_format(build_tiny(tokenizer), tokenizer, batches, held_out, 1, 1e-3, min_coverage=0.9, max_rounds=2)


def test_bad_sizes_are_refused(tokenizer):
    with pytest.raises(InputError, match="--vocab-size"):
        build_tiny(tokenizer, vocab_size=len(tokenizer) - 1)
    with pytest.raises(InputError, match="--hidden"):
        build_model(tokenizer, get_sizes(hidden=18), 0)


def test_same_seed_same_weights(tokenizer):
    first, second, other = (build_tiny(tokenizer, seed=seed).get_input_embeddings().weight for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_model_folder_is_an_ordinary_one_that_stops_at_the_end_of_turn(folder):
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert model.config.vocab_size == 1088 > len(tokenizer)
    assert model.dtype == torch.float32
    assert tokenizer.chat_template
    assert json.loads((folder / "model" / "generation_config.json").read_text())["eos_token_id"] == [
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    ]
    # A model that only generates the end of turn generates it once.
    with torch.no_grad():
        model.model.norm.weight.zero_()
        model.lm_head = torch.nn.Linear(32, 1088)
        model.lm_head.bias.zero_()[tokenizer.eos_token_id] = 100.0
    ids = torch.tensor([[5, 6, 7]])
    assert model.generate(ids, max_new_tokens=9).tolist() == [[5, 6, 7, tokenizer.eos_token_id]]


def test_adapter_is_a_checkpoint_over_the_model_that_changes_it(folder):
    arguments = ["--model", str(folder / "model"), "--sft", str(folder / "artifacts/sft/sft_train_banks.jsonl")]
    out = folder / "adapters" / "banks"
    train_demo_adapter.main([*arguments, "--out", str(out), "--rank", "2", "--steps", "2", "--batch-size", "2"])
    settings = json.loads((out / "adapter_config.json").read_text())
    # The cached signals depend on these bytes, so they must not differ between runs.
    assert settings["target_modules"] == sorted(settings["target_modules"])
    assert (settings["peft_type"], settings["r"]) == ("LORA", 2)
    ids = torch.tensor([[5, 6, 7]])
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    before = base(ids).logits
    adapted = PeftModel.from_pretrained(base, out)
    assert not torch.allclose(adapted(ids).logits, before, atol=1e-6)
    assert torch.equal(adapted.unload()(ids).logits, before)


def test_missing_and_malformed_files_are_named(folder, tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        train_demo_tokenizer.main(["--sft", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "tokenizer")])
    with pytest.raises(InputError, match="--sft, --grpo: expected records to train the tokenizer on, found none"):
        train_demo_tokenizer.main(["--out", str(tmp_path / "tokenizer")])
    bad = tmp_path / "bad.jsonl"
    record = next(record for _, record in read_jsonl(folder / "artifacts/sft/sft_train_banks.jsonl"))
    write_jsonl(bad, [record, {"messages": "none"}])
    with pytest.raises(InputError, match=r"bad\.jsonl:2: messages: expected a list of messages"):
        train_demo_tokenizer.main(["--sft", str(bad), "--out", str(tmp_path / "tokenizer")])
    write_jsonl(bad, [record, make_chat()])
    with pytest.raises(InputError, match=r"bad\.jsonl:2: messages: expected a single user text without tools"):
        train_demo_tokenizer.main(["--sft", str(bad), "--out", str(tmp_path / "tokenizer")])
    with pytest.raises(InputError, match="no tokenizer.json"):
        train_demo_model.main(["--tokenizer", str(tmp_path), "--sft", str(bad), "--out", str(tmp_path / "model")])
    assert not (tmp_path / "tokenizer").exists()


def test_validation_and_test_records_are_held_out(tokenizer, chats):
    split = (7, Fraction(1, 5), Fraction(1, 4))
    training, held_out = encode_chats(tokenizer, chats, 4096, split)
    learnt = {tuple(prompt) for prompt, _ in training}
    for system, user, _ in chats:
        is_learnt = tuple(ChatTemplate(tokenizer).encode_prompt(system, user)) in learnt
        assert is_learnt == (get_split(get_uid(system, user), *split) == "train")
    assert len(training) + len(held_out) == len(chats)
