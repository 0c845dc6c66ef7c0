"""A probe that a model's answers in a batch are those that it gives alone.

Some architectures ignore the padding of a batch, without an error: their recurrent state or their position embeddings
see it. The probe decodes a short and a long prompt together and compares the logits with those of plain forward passes
without cache and padding.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from distill.common.errors import InputError
from distill.generation.rolling_batch import Job
from distill.models.batches import is_out_of_memory
from distill.models.split_check import ERRORS, TOLERANCE

logger = logging.getLogger(__name__)

Decode = Callable[[Any, Any, Job, int | None], Iterator[list[tuple[int, list[int]]]]]

# Architectures that tests/unit/models/test_architectures.py holds to the answers of each prompt alone. Others are
# probed when they first generate.
TESTED = ("gemma", "gemma2", "gemma3_text", "glm4", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3",
          "qwen3_moe", "smollm3")  # fmt: skip
LENGTHS = (16, 5)  # tokens of the prompts; decoding takes the longer one first
STEPS = 3  # tokens of the answers, which are given

_chosen: WeakKeyDictionary[Any, tuple[Decode, int | None]] = WeakKeyDictionary()


def choose_decoding(
    model: Any, tokenizer: Any, stops: Sequence[int], decoders: Sequence[Decode]
) -> tuple[Decode, int | None]:
    """Return the first way to decode that gives the model's own logits, and the largest number of answers at a time.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        stops: ids that end an answer.
        decoders: ways to decode, the fastest first; the last one also decodes one prompt at a time, without padding.

    Returns:
        A decoder; None for any number of answers at a time, or 1.

    Raises:
        InputError: no way gives the model's own logits.
    """
    kind = model.config.get_text_config(decoder=True).model_type
    if kind in TESTED:
        return decoders[0], None
    if model not in _chosen:
        _chosen[model] = probe(model, tokenizer, stops, decoders)
        decode, most = _chosen[model]
        if most == 1:
            logger.warning("%s: answers depend on the other prompts of a batch; they are generated one by one", kind)
        elif decode is not decoders[0]:
            logger.info("%s: answers are generated in padded batches", kind)
    return _chosen[model]


def probe(model: Any, tokenizer: Any, stops: Sequence[int], decoders: Sequence[Decode]) -> tuple[Decode, int | None]:
    """See `choose_decoding`."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    tokens = [token for token in range(min(vocabulary, len(tokenizer))) if token not in stops]
    tokens = [token for token in tokens if token != tokenizer.pad_token_id]
    places = torch.randint(len(tokens), (sum(LENGTHS) + 1,), generator=generator).tolist()
    drawn = [tokens[place] for place in places]
    prompts, given = [drawn[: LENGTHS[0]], drawn[LENGTHS[0] : -1]], drawn[-1]
    expected = [compute_plain(model, prompt, given) for prompt in prompts]
    for decode in decoders:
        if agrees(partial(read_logits, decode, model, tokenizer, prompts, given, stops), expected):
            return decode, None
    last = decoders[-1]
    alone = [
        agrees(partial(read_logits, last, model, tokenizer, [prompt], given, stops), [wanted])
        for prompt, wanted in zip(prompts, expected, strict=True)
    ]
    if all(alone):
        return last, 1
    raise InputError(
        f"{type(model).__name__} is not supported: the logits of an answer that is generated with the model's cache "
        "differ from those of a forward pass over prompt and answer"
    )


@torch.inference_mode()
def compute_plain(model: Any, prompt: Sequence[int], given: int) -> Tensor:
    """The logits of a given answer by one forward pass, (STEPS, vocabulary)."""
    ids = torch.tensor([[*prompt, *[given] * (STEPS - 1)]], device=model.device)
    return model(input_ids=ids, use_cache=False).logits[0, -STEPS:].float()


def read_logits(
    decode: Decode, model: Any, tokenizer: Any, prompts: Sequence[list[int]], given: int, stops: Sequence[int]
) -> list[Tensor]:
    """The logits of a given answer to each prompt as they are decoded together, (STEPS, vocabulary) each."""
    seen: list[Tensor] = []

    def draw(logits: Tensor, uniforms: Tensor | None) -> Tensor:
        seen.append(logits.float().clone())
        return torch.full((len(logits),), given, device=logits.device)

    job = Job(prompts, [STEPS] * len(prompts), stops, None, draw)
    for _ in decode(model, tokenizer, job, len(prompts)):
        pass
    return list(torch.stack(seen[:STEPS], dim=1))


def agrees(read: Callable[[], list[Tensor]], expected: Sequence[Tensor]) -> bool:
    """Whether decoding gives the expected logits; an error of the model counts as a difference."""
    try:
        found = read()
    except ERRORS as error:
        if is_out_of_memory(error):
            raise
        logger.debug("decoding failed in the probe", exc_info=True)
        return False
    return all(
        one.shape == wanted.shape and bool((one - wanted).abs().max() <= TOLERANCE * wanted.abs().max())
        for one, wanted in zip(found, expected, strict=True)
    )
