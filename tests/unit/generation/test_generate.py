"""Generation: random streams, continuous batching, prefix sharing, stopping, memory."""

import gc
import json
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_cuda_runs import run_on_fake_cuda
from tiny import CHATML, SPECIAL, build_model, build_sentencepiece, build_tokenizer
from tokenizers import Tokenizer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from distill.common.errors import InputError
from distill.generation import generate as generation
from distill.generation import kv_cache as slots
from distill.generation import rolling_batch
from distill.generation.generate import Draw, decode_padded, decode_rolling, generate_requests, has_full_attention
from distill.generation.kv_cache import RowLimit
from distill.generation.rolling_batch import Job, RollingBatch, count_cached
from distill.generation.sampling import Request, Sampling, record_uniforms
from distill.models.batches import in_batches
from distill.models.chat import ChatTemplate
from distill.models.placement import layer_devices
from distill.models.vocabulary import find_unused_ids
from distill.records.answer_format import parse_answer

SAMPLING = Sampling(max_new_tokens=12, temperature=1.0, seed=5)
GREEDY = Sampling(max_new_tokens=12, temperature=0.0)


@pytest.fixture(scope="module")
def model():
    return build_model(vocabulary=352, scale=8.0)


@pytest.fixture
def requests(prompts):
    """Requests of many lengths, some with a common prefix."""
    texts = [prompt["prompt"] for prompt in prompts]
    texts += [f"me=12.5, profit=0.31: {word * 20} {number * word}" for word in ("a", "up") for number in range(1, 6)]
    return [Request(number, f"uid{number}", "You are a manager.", text) for number, text in enumerate(texts)]


def answer(model, tokenizer, requests, sampling=SAMPLING, batch_size=3):
    batches = generate_requests(model, ChatTemplate(tokenizer), requests, sampling, batch_size)
    return {request.key: generated for batch in batches for request, generated in batch}


def make_job(tokenizer, requests, sampling):
    prompts = [ChatTemplate(tokenizer).encode_prompt(request.system, request.prompt) for request in requests]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    longest = [2 + index % sampling.max_new_tokens for index in range(len(prompts))]
    keys = [request.key for request in requests]
    uniforms = (lambda index: record_uniforms(keys[index], 1, 99)) if sampling.temperature else None
    return Job(prompts, longest, [end], uniforms, Draw(sampling, len(tokenizer)))


def test_a_records_answer_does_not_depend_on_its_batch(model, tokenizer, requests):
    together = answer(model, tokenizer, requests, batch_size=len(requests))
    alone = answer(model, tokenizer, requests, batch_size=1)
    backwards = answer(model, tokenizer, requests[::-1])
    assert together == alone == backwards == answer(model, tokenizer, requests, batch_size=None)
    assert len({generated.text for generated in together.values()}) > 3


def test_the_seed_and_the_sample_change_answers_and_temperature_0_does_not_draw(model, tokenizer, requests):
    first = answer(model, tokenizer, requests)
    assert first != answer(model, tokenizer, requests, Sampling(max_new_tokens=12, temperature=1.0, seed=6))
    again = [Request(r.id, r.uid, r.system, r.prompt, sample=1) for r in requests]
    assert [first[r.uid] for r in requests] != list(answer(model, tokenizer, again).values())
    greedy = [Sampling(max_new_tokens=12, temperature=0.0, seed=seed) for seed in (1, 2)]
    assert answer(model, tokenizer, requests, greedy[0]) == answer(model, tokenizer, requests, greedy[1])


@pytest.mark.parametrize("batch_size", [1, 3, 100, None])
def test_greedy_equals_a_plain_loop_without_cache_or_padding(model, tokenizer, requests, batch_size):
    found = answer(model, tokenizer, requests, Sampling(max_new_tokens=8, temperature=0.0), batch_size)
    stops = generation.stop_ids(model.generation_config, tokenizer)
    for request in requests:
        ids = ChatTemplate(tokenizer).encode_prompt(request.system, request.prompt)
        start = len(ids)
        while len(ids) < start + 8 and (len(ids) == start or ids[-1] not in stops):
            with torch.no_grad():
                ids.append(model(torch.tensor([ids])).logits[0, -1, : len(tokenizer)].argmax().item())
        text = tokenizer.decode(ids[start:], skip_special_tokens=True)
        assert found[request.uid].text == (text if ids[-1] in stops else text.rstrip("\ufffd"))
        assert (found[request.uid].tokens, found[request.uid].prompt_tokens) == (len(ids) - start, start)


@pytest.mark.parametrize("sampling", [SAMPLING, GREEDY], ids=["sampled", "greedy"])
def test_the_rolling_batch_equals_padded_batches_of_transformers(model, tokenizer, requests, sampling):
    job = make_job(tokenizer, requests, sampling)
    rolling, padded = (
        {index: tokens for batch in decode(model, tokenizer, job, 4) for index, tokens in batch}
        for decode in (decode_rolling, decode_padded)
    )
    assert {len(tokens) for tokens in rolling.values()} > {2, 3, 4}  # they finish at different steps
    end = job.stops[0]
    cut = {index: tokens[: tokens.index(end) + 1] if end in tokens else tokens for index, tokens in padded.items()}
    assert rolling == cut


def test_every_token_of_a_shared_beginning_is_read_once(model, tokenizer, requests):
    job = make_job(tokenizer, requests, GREEDY)
    read = []

    class Counted(RollingBatch):
        def prefill(self, taken):
            read.append(sum(len(job.prompts[waiting.index]) - count_cached(waiting) for waiting in taken))
            return super().prefill(taken)

    list(Counted(model, job, RowLimit(4, {model.device: 1})).run())
    groups = generation_groups(job.prompts)
    shared = sum((len(members) - 1) * length for length, members in groups)
    assert shared > 200
    assert sum(read) == sum(map(len, job.prompts)) - shared


def generation_groups(prompts):
    from distill.generation.prefixes import group_by_prefix

    return [(group.length, group.members) for group in group_by_prefix(prompts)]


def test_an_answer_that_ends_leaves_its_row_to_the_next(model, tokenizer, requests):
    job = make_job(tokenizer, requests, SAMPLING)
    rows = []

    class Watched(RollingBatch):
        def step(self):
            rows.append(len(self.rows))
            super().step()

    found = [pair for batch in Watched(model, job, RowLimit(4, {model.device: 1})).run() for pair in batch]
    steps = sum(len(tokens) - 1 for _, tokens in found)  # the first one comes from the prefill
    assert sum(rows) == steps  # no row is computed after its sequence has finished
    assert rows.count(4) > len(rows) * 0.6


@pytest.mark.parametrize("sampling", [SAMPLING, GREEDY], ids=["sampled", "greedy"])
def test_running_out_of_memory_halves_the_batch_and_changes_no_answer(model, tokenizer, requests, sampling):
    job = make_job(tokenizer, requests, sampling)
    expected = {index: tokens for batch in decode_rolling(model, tokenizer, job, 8) for index, tokens in batch}
    seen = []

    class Small(RollingBatch):
        def step(self):
            seen.append(len(self.rows))
            if len(self.rows) > 3 and any(len(answer.tokens) > 3 for answer in self.rows):
                raise torch.OutOfMemoryError
            super().step()

        def forward(self, ids, *rest):
            if ids.shape[0] > 5:
                raise torch.OutOfMemoryError
            return super().forward(ids, *rest)

    limit = RowLimit(8, {model.device: 1})
    found = {index: tokens for batch in Small(model, job, limit).run() for index, tokens in batch}
    assert found == expected
    assert limit.size == 2  # the limit stays halved
    assert max(seen) > 3


@pytest.mark.parametrize("sampling", [SAMPLING, GREEDY], ids=["sampled", "greedy"])
def test_sequences_continue_where_memory_ran_out(model, tokenizer, requests, sampling):
    """Tokens are decoded once: a restart prefills them with the prompt, and each prefill gives the next one."""
    job = make_job(tokenizer, requests, sampling)
    failures = []

    class Small(RollingBatch):
        decoded = prefilled = 0

        def prefill(self, taken):
            made = super().prefill(taken)
            self.prefilled += len(taken)
            return made

        def step(self):
            if len(failures) < 2 and min(len(one.tokens) for one in self.rows) > 2:
                failures.append([(one.index, list(one.tokens)) for one in self.rows])
                raise torch.OutOfMemoryError
            rows = len(self.rows)
            super().step()
            self.decoded += rows

    batch = Small(model, job, RowLimit(8, {model.device: 1}))
    found = {index: tokens for ended in batch.run() for index, tokens in ended}
    assert found == {index: tokens for ended in decode_rolling(model, tokenizer, job, 8) for index, tokens in ended}
    assert len(failures) == 2
    assert all(found[index][: len(tokens)] == tokens for rows in failures for index, tokens in rows)
    assert batch.prefilled == len(requests) + sum(map(len, failures))
    assert batch.decoded == sum(map(len, found.values())) - batch.prefilled


def test_a_sequence_that_ended_before_memory_ran_out_is_not_continued(model, tokenizer, requests):
    job = make_job(tokenizer, requests, GREEDY)
    job.longest[:] = [1] * len(job.longest)  # every answer ends with its prefill

    class Small(RollingBatch):
        calls = 0

        def prefill(self, taken):
            self.calls += 1
            if self.calls == 2:
                raise torch.OutOfMemoryError
            return super().prefill(taken)

    batch = Small(model, job, RowLimit(8, {model.device: 1}))
    batch.prefill_tokens = 1  # one prompt per prefill, so that the second one fails with a row that has ended
    found = [pair for ended in batch.run() for pair in ended]
    assert sorted(index for index, _ in found) == list(range(len(requests)))
    assert all(len(tokens) == 1 for _, tokens in found)


@pytest.mark.parametrize("sampling", [SAMPLING, GREEDY], ids=["sampled", "greedy"])
def test_more_keys_than_the_longest_row_change_no_answer(model, tokenizer, requests, monkeypatch, sampling):
    job = make_job(tokenizer, requests, sampling)
    expected = sorted(pair for ended in decode_rolling(model, tokenizer, job, 4) for pair in ended)
    monkeypatch.setitem(rolling_batch.KEY_MULTIPLE, "cpu", 64)
    lengths, masks = set(), set()

    class Watched(RollingBatch):
        def forward(self, ids, cache, positions, mask):
            if ids.shape[1] == 1 and mask is not None and mask.dim() == 4:
                lengths.add(cache.length)
                masks.update(mask.stride()[:-1])
            return super().forward(ids, cache, positions, mask)

    found = Watched(model, job, RowLimit(4, {model.device: 1}))
    assert sorted(pair for ended in found.run() for pair in ended) == expected
    assert lengths
    assert all(length % 64 == 0 for length in lengths)
    assert all(stride % 8 == 0 for stride in masks)


def test_every_device_limits_the_rows_by_its_own_layers(monkeypatch):
    """Free memory of one GPU is of no use to the layers on another one."""
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    free = {first: 1000, second: 200}
    monkeypatch.setattr(slots, "free_memory", free.__getitem__)
    assert RowLimit(None, {first: 10, second: 10}).size == 16  # 0.8 · 200 / 10
    assert RowLimit(None, {first: 10, second: 1}).size == 64
    assert RowLimit(None, {first: 10, second: 10}, {second: 100}).size == 6
    assert RowLimit(None, {first: 10, second: 10}, {second: 1000}).size == 1
    limit = RowLimit(None, {first: 1, second: 1})
    cache = SimpleNamespace(nbytes_by_device=lambda: {first: 64, second: 64})
    assert limit.grow(64, cache) == 128
    cache.nbytes_by_device = lambda: {first: 1000, second: 64}
    assert limit.grow(128, cache) == 128  # 256 rows on the second GPU


def test_a_layer_on_the_cpu_keeps_its_cache_on_the_gpu_that_computes_it(model):
    layers = build_model(layers=3)
    assert layer_devices(layers) == [torch.device("cpu")] * 3
    for layer, device in zip(layers.model.layers, (0, 1, torch.device("cuda", 0)), strict=True):
        layer._hf_hook = SimpleNamespace(execution_device=device)
    assert [str(device) for device in layer_devices(layers)] == ["cuda:0", "cuda:1", "cuda:0"]


def test_the_reserve_covers_a_prefill_on_a_gpu():
    """Two layers in bfloat16 on fake CUDA tensors: what a prefill takes besides weights and rows, and its estimate."""
    taken, reserved = run_on_fake_cuda("""
        from transformers import Qwen2Config
        from distill.memory_plan.fake_models import make_model
        from distill.generation.generate import measure_rows
        from distill.generation.kv_cache import RowLimit
        from distill.generation.rolling_batch import Job, RollingBatch, Waiting
        config = Qwen2Config(vocab_size=32000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=2,
                             num_attention_heads=8, num_key_value_heads=2)
        model = make_model(config, torch.bfloat16, "cuda")
        job = Job([[1] * 1000] * 16, [10] * 16, [7], None, lambda logits, uniforms: logits)
        rows, reserved = measure_rows(model, job)
        batch = RollingBatch(model, job, RowLimit(16, rows, reserved))
        live = LiveMemory("cuda")
        live.hold(model)
        weights = live.now
        with live, torch.inference_mode():
            batch.prefill([Waiting(index) for index in range(16)])
        found = [max(live.peaks.values()) - weights, sum(reserved.values())]
    """)
    assert taken <= reserved <= 1.6 * taken


def test_a_step_waits_for_no_copy_to_the_gpu():
    """On fake CUDA tensors: between a step's first kernel and its answer no copy from the CPU blocks."""
    copies, blocking = run_on_fake_cuda("""
        import numpy as np
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_flatten
        from transformers import Qwen2Config
        from distill.memory_plan.fake_models import make_model
        from distill.generation.kv_cache import RowLimit
        from distill.generation.rolling_batch import Job, RollingBatch

        class Copies(TorchDispatchMode):
            seen = []
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                result = func(*args, **(kwargs or {}))
                aten = torch.ops.aten
                if func.overloadpacket in (aten.to, aten._to_copy, aten.copy_):
                    tensors = [one for one in tree_flatten((args, result))[0] if isinstance(one, torch.Tensor)]
                    tensors = [one for one in tensors if one.numel()]
                    if {"cpu", "cuda"} <= {one.device.type for one in tensors}:
                        is_async = (kwargs or {}).get("non_blocking", False) or len(args) > 2 and args[2]
                        self.seen.append(bool(is_async))
                return result

        class Tokens:
            def __init__(self, count):
                self.count = count
            def tolist(self):
                return [5] * self.count

        config = Qwen2Config(vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                             num_attention_heads=4, num_key_value_heads=2)
        model = make_model(config, torch.bfloat16, "cuda")
        draw = lambda logits, uniforms: Tokens(len(logits) + 0 * len(uniforms))
        prompts = [[number] * (5 + number) for number in range(1, 7)]
        job = Job(prompts, [4] * 6, [7], lambda index: np.ones(9), draw)
        with Copies() as copies:
            batch = RollingBatch(model, job, RowLimit(3, {model.device: 1}))
            answers = [pair for ended in batch.run() for pair in ended]
        assert sorted(answers) == [(number, [5] * 4) for number in range(6)]
        found = [len(copies.seen), copies.seen.count(False)]
    """)
    assert copies > 20
    assert blocking == 0


@pytest.mark.parametrize("rows", [1.5, 2.5, 4.5, 7.5])
def test_memory_that_holds_few_rows_is_enough(model, tokenizer, requests, monkeypatch, rows):
    """Make allocations of the KV cache fail beyond a budget; while it is resized, old and new tensors both count."""
    job = make_job(tokenizer, requests, GREEDY)
    expected = {index: tokens for batch in decode_rolling(model, tokenizer, job, 8) for index, tokens in batch}
    capacity = slots.GROWTH * -(-max(len(p) + n for p, n in zip(job.prompts, job.longest, strict=True)) // slots.GROWTH)
    row = capacity * 4 * model.config.num_key_value_heads * model.config.hidden_size // model.config.num_attention_heads
    # Two layers' keys and values, and a copy of one tensor while it grows.
    budget = rows * row * (2 * 2 + 1)
    living = weakref.WeakSet()
    plain = slots.resized

    def resized(tensor, count, capacity):
        new = count * capacity * tensor.shape[1] * tensor.shape[3] * 4
        if sum(one.nbytes for one in living) + new > budget:
            raise torch.OutOfMemoryError
        made = plain(tensor, count, capacity)
        living.add(made)
        return made

    monkeypatch.setattr(slots, "resized", resized)
    gc.disable()  # memory that only Python's garbage collector would free counts as used
    try:
        found = {index: tokens for batch in decode_rolling(model, tokenizer, job, 8) for index, tokens in batch}
    finally:
        gc.enable()
    assert found == expected
    assert not living


def test_a_cpu_that_has_no_memory_halves_too(model, tokenizer, requests):
    job = make_job(tokenizer, requests, GREEDY)

    class Small(RollingBatch):
        def step(self):
            if len(self.rows) > 3:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
            super().step()

    limit = RowLimit(8, {model.device: 1})
    found = {index: tokens for batch in Small(model, job, limit).run() for index, tokens in batch}
    assert sorted(found) == list(range(len(requests)))
    assert limit.size == 2


def test_few_prompts_take_few_rows(model, tokenizer, requests):
    batch = RollingBatch(model, make_job(tokenizer, requests[:3], GREEDY), RowLimit(None, {model.device: 1}))
    run = batch.run()
    next(run)
    assert len(batch.cache.rows) == 3
    run.close()
    assert batch.cache.nbytes == 0


def test_nothing_to_ask_is_nothing_to_do(model, tokenizer):
    assert list(generate_requests(model, ChatTemplate(tokenizer), [], GREEDY)) == []


def test_learned_positions_end_with_the_context(tokenizer, requests):
    torch.manual_seed(0)
    lengths = [len(ChatTemplate(tokenizer).encode_prompt(request.system, request.prompt)) for request in requests]
    sizes = {"vocab_size": 352, "n_embd": 16, "n_layer": 1, "n_head": 2}
    gpt2 = GPT2LMHeadModel(GPT2Config(**sizes, n_positions=max(lengths) + 2, bos_token_id=2, eos_token_id=2)).eval()
    assert not has_full_attention(gpt2.config)
    found = answer(gpt2, tokenizer, requests, batch_size=8)
    assert found[requests[lengths.index(max(lengths))].uid].tokens <= 2


def test_what_does_not_fit_alone_is_an_error(model, tokenizer, requests):
    class Full(RollingBatch):
        def step(self):
            raise torch.OutOfMemoryError("no memory")

    job = make_job(tokenizer, requests, GREEDY)
    with pytest.raises(InputError, match="the model and a single sequence do not fit in memory"):
        list(Full(model, job, RowLimit(8, {model.device: 1})).run())


def test_the_batch_grows_as_far_as_memory_allows(model, tokenizer, monkeypatch):
    from distill.generation import kv_cache

    requests = [Request(number, str(number), "", f"me={number}") for number in range(300)]
    job = make_job(tokenizer, requests, GREEDY)
    for free, expected in ((2**40, 64), (40 * 10**6, 32)):
        monkeypatch.setattr(kv_cache, "free_memory", lambda device, free=free: free)
        rows = []

        class Watched(RollingBatch):
            def step(self):
                rows.append(len(self.rows))  # noqa: B023
                super().step()

        list(Watched(model, job, RowLimit(None, {model.device: 10**6})).run())
        assert max(rows) == expected


def test_the_models_own_generation_settings_do_not_count(tokenizer, requests):
    plain, penalised = build_model(scale=8.0), build_model(scale=8.0)
    penalised.generation_config.repetition_penalty = 5.0
    penalised.generation_config.top_k = 1
    assert answer(plain, tokenizer, requests) == answer(penalised, tokenizer, requests)
    job = make_job(tokenizer, requests, SAMPLING)
    padded = [list(decode_padded(model, tokenizer, job, 4)) for model in (plain, penalised)]
    assert padded[0] == padded[1]
    assert penalised.generation_config.repetition_penalty == 5.0


def test_models_with_windows_take_the_padded_way(tokenizer, requests):
    torch.manual_seed(0)
    sizes = {"vocab_size": 352, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 2, "bos_token_id": 1}
    config = MistralConfig(**sizes, **heads, sliding_window=8, max_position_embeddings=512)
    assert not has_full_attention(config)
    assert has_full_attention(MistralConfig(**sizes, **heads, sliding_window=None))
    assert has_full_attention(build_model().config)
    windowed = MistralForCausalLM(config).eval()
    together = answer(windowed, tokenizer, requests, batch_size=5)
    assert together == answer(windowed, tokenizer, requests, batch_size=1)


def test_answers_end_with_the_context_and_longer_prompts_are_named(tokenizer, requests):
    small = build_model(scale=8.0)
    lengths = [len(ChatTemplate(tokenizer).encode_prompt(request.system, request.prompt)) for request in requests]
    small.config.max_position_embeddings = max(lengths) + 3
    found = answer(small, tokenizer, requests)
    longest = requests[lengths.index(max(lengths))]
    assert found[longest.uid].tokens <= 3
    small.config.max_position_embeddings = max(lengths)
    with pytest.raises(InputError, match=rf"prompt {longest.id} .* {max(lengths)} tokens.* context of {max(lengths)}"):
        answer(small, tokenizer, requests)


def draw(logits, sampling, count=4000):
    """Sample one token `count` times, each from another record's stream."""
    uniforms = torch.tensor([record_uniforms(str(number), sampling.seed, 1)[0] for number in range(count)])
    return Draw(sampling, len(logits))(torch.tensor(logits).expand(count, -1), uniforms)


def test_tokens_are_drawn_with_their_probabilities():
    logits = [0.0, 1.0, 2.0, -1.0]
    drawn = draw(logits, Sampling(max_new_tokens=1, temperature=0.5, seed=1))
    found = np.bincount(drawn, minlength=4) / len(drawn)
    expected = np.exp(np.array(logits) / 0.5) / np.exp(np.array(logits) / 0.5).sum()
    # Four standard deviations of a share over 4,000 draws.
    assert (np.abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / len(drawn)) + 1e-9).all()


def test_top_k_and_top_p_leave_the_rest_out():
    logits = [3.0, 2.0, 1.0, 0.0]
    assert set(draw(logits, Sampling(1, 1.0, 1.0, 2)).tolist()) == {0, 1}
    assert set(draw(logits, Sampling(1, 1.0, 0.7)).tolist()) == {0, 1}


def test_streams_belong_to_record_sample_and_seed():
    assert (record_uniforms("a", 1, 5) == record_uniforms("a", 1, 9)[:5]).all()
    for key, seed in (("b", 1), ("a", 2), (Request(0, "a", "", "", sample=1).key, 1)):
        assert (record_uniforms("a", 1, 5) != record_uniforms(key, seed, 5)).all()


def test_an_answer_ends_at_the_end_of_turn_and_says_so(tokenizer):
    end, word = tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer("me")["input_ids"]
    stopped = generation.finish(ChatTemplate(tokenizer), [*word, end, *word], [end], 7)
    assert (stopped.text, stopped.finish_reason, stopped.tokens) == ("me", "stop", len(word) + 1)
    cut = generation.finish(ChatTemplate(tokenizer), word, [end], 7)
    assert (cut.text, cut.finish_reason, cut.tokens, cut.prompt_tokens) == ("me", "length", len(word), 7)


def test_an_answer_begins_with_what_its_template_opens(tokenizer):
    template = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    chat, end = ChatTemplate(build_tokenizer(template=template)), tokenizer.convert_tokens_to_ids("<|im_end|>")
    found = generation.finish(chat, [*tokenizer("me</think>")["input_ids"], end], [end], 7)
    assert found.text == "<think>\nme</think>"


TAGS = ["<think>", "</think>", "<answer>", "</answer>"]


def test_special_tags_are_part_of_the_answer():
    """Models trained with GRPO often have the tags of their answers as special tokens."""
    tokenizer = build_tokenizer(special=[*SPECIAL, *TAGS, "<tool>", "<s>"])
    tokenizer.bos_token = "<s>"
    text = '<think>me↑</think>\n<answer>\n{"holding_log_delta": 0.12}\n</answer><tool>'
    tokens = tokenizer(text)["input_ids"]
    bos, pad, end = tokenizer.convert_tokens_to_ids(["<s>", "<|endoftext|>", "<|im_end|>"])
    found = generation.finish(ChatTemplate(tokenizer), [bos, *tokens, pad, end, *tokens], [end], 7)
    assert (found.text, found.finish_reason, found.tokens) == (text, "stop", len(tokens) + 3)
    assert parse_answer(found.text, "holding_log_delta").value == 0.12
    assert ChatTemplate(tokenizer).encode_completion(text.removesuffix("<tool>"))[:-1] == tokens[:-1]


@pytest.mark.parametrize("build", [build_tokenizer, build_sentencepiece])
@pytest.mark.parametrize("character", ["é", "诸", "😀"])
def test_a_character_cut_at_the_maximum_length_is_left_out(build, character):
    tokenizer = build()
    tokens = tokenizer(f"me{character}", add_special_tokens=False)["input_ids"]
    start = len(tokenizer("me", add_special_tokens=False)["input_ids"])
    me = " me" if build is build_sentencepiece else "me"  # the first token is `▁me`
    assert len(tokens) == start + len(character.encode())  # a token per byte
    for length in range(start, len(tokens)):
        found = generation.finish(ChatTemplate(tokenizer), tokens[:length], [2], 7)
        assert (found.text, found.finish_reason, found.tokens) == (me, "length", length)
    assert generation.finish(ChatTemplate(tokenizer), tokens, [2], 7).text == f"{me}{character}"
    # A model that ends its turn in the middle of a character has said so.
    assert generation.finish(ChatTemplate(tokenizer), [*tokens[:-1], 2], [2], 7).text.strip().startswith("me\ufffd")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["torch", "driver", "cuBLAS", "cuDNN", "CPU"],
)
def test_batches_that_run_out_of_memory_are_halved_and_lose_nothing(monkeypatch, error):
    sizes, handled = [], []
    # What the failed batch allocated is free only when its exception is no longer handled.
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: handled.append(sys.exception()))

    def work(rows):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise error
        return list(rows)

    assert [row for batch in in_batches(list(range(9)), work, 8) for row in batch] == list(range(9))
    assert sizes[:3] == [8, 4, 2]
    assert handled == [None, None]

    def hopeless(rows):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        list(in_batches([1, 2], hopeless, 2))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("decode", [decode_rolling, decode_padded])
def test_ids_beyond_the_tokenizer_are_never_answered(tokenizer, requests, temperature, decode):
    padded = build_model(vocabulary=len(tokenizer) + 40)
    with torch.no_grad():  # padding of the vocabulary is by far the most likely
        hidden = padded.model(torch.tensor([[5]])).last_hidden_state[0, 0]
        padded.get_output_embeddings().weight[len(tokenizer) :] = 10 * hidden
    job = make_job(tokenizer, requests, Sampling(max_new_tokens=12, temperature=temperature, seed=3))
    new = [tokens for batch in decode(padded, tokenizer, job, 4) for _, tokens in batch]
    assert max(max(tokens) for tokens in new) < len(tokenizer)


def spread_ids(tokenizer, gap=40):
    """The same tokenizer with its control tokens behind all others, `gap` ids away."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["id"] += len(tokenizer) + gap
        state["model"]["vocab"][token["content"]] = token["id"]
    spread = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    spread.chat_template = tokenizer.chat_template
    return spread


@pytest.mark.parametrize("sampling", [SAMPLING, GREEDY], ids=["sampled", "greedy"])
@pytest.mark.parametrize("likely", ["end", "hole"])
def test_of_ids_with_holes_every_token_can_be_drawn_and_no_hole(tokenizer, requests, sampling, likely):
    spread = spread_ids(tokenizer)
    end, holes = spread.convert_tokens_to_ids("<|im_end|>"), find_unused_ids(spread)
    assert end >= len(spread)
    assert len(holes) == 3 + 40
    model = build_model(vocabulary=end + 20)
    model.lm_head = torch.nn.Linear(16, end + 20)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias[holes if likely == "hole" else end] = 100.0
    found = answer(model, spread, requests[:3], sampling)
    for one in found.values():
        assert (one.tokens == 1) == (one.finish_reason == "stop") == (likely == "end")


@pytest.mark.parametrize("sampling", [SAMPLING, GREEDY], ids=["sampled", "greedy"])
def test_logits_that_are_not_finite_stop_the_run(model, tokenizer, requests, sampling):
    broken = build_model(scale=float("nan"))
    with pytest.raises(InputError, match="not finite"):
        answer(broken, tokenizer, requests, sampling)


def test_an_end_of_turn_that_the_model_cannot_generate_is_refused(tokenizer, requests):
    small = build_model(vocabulary=len(tokenizer))
    beyond = build_tokenizer(
        special=["<|endoftext|>", "<|im_start|>"], template=CHATML.replace("<|im_end|>", "<|eot|>")
    )
    beyond.add_tokens(["<|eot|>"], special_tokens=True)
    beyond.eos_token = "<|eot|>"
    small.resize_token_embeddings(len(beyond) - 1)
    with pytest.raises(
        InputError, match=r"expected a model that can end a turn, found one with \d+ tokens, and '<.eot.>'"
    ):
        list(generation.generate_requests(small, ChatTemplate(beyond), requests, Sampling(4, 0.0)))
