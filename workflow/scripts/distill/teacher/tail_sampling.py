"""A sample of the tokens outside the k most likely ones, with which the gradient of the forward KL is unbiased.

Let p be the teacher's distribution at temperature τ, T the tokens outside its k most likely ones, P their probability
together, and r(i) = p(i) / P for i in T. Of n tokens drawn from r, each gets the weight P / n:

    p̂(i) = p(i) for the k tokens,   p̂(i) = P / n · (number of times that i was drawn) for i in T.

Since the expected number of times is n · r(i), E p̂ = p. The gradient of τ² KL(p‖q) with respect to the student's logits
is τ (q − p), linear in p, so with p̂ it has the right expectation at any τ, and so has Σ p̂ log q in the value. P is
stored and not estimated: the proposal r is the target itself at the temperature of the student, so all importance
weights are equal, and p̂ sums to one in every draw. What the value lacks does not depend on the student:
Σ p(i) log p(i) over T = P (log P − H), where H is the entropy of r, which is stored as well.

The n tokens are drawn systematically (Madow 1949): at the places (u + j) / n, j = 0 … n − 1, of the cumulative
distribution of r, with one uniform u. A token with n · r(i) ≥ 1 is then certain to be drawn, and a count differs from
its expectation by less than one. Sparse Logit Sampling (Anshumann et al., ACL 2025) draws independently.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.models.example_table import Example
from distill.teacher.signal_files import signal_key


def draw_places(examples: Sequence[Example], temperatures: int, samples: int) -> Tensor:
    """Draw where the cumulative distributions are read, from the tokens of each record and nothing else.

    Args:
        examples: the records.
        temperatures: number of temperatures.
        samples: number of tokens to sample.

    Returns:
        (completion tokens of all records, temperatures, samples) float64 from 0 to below 1, ascending.
    """
    numbers = []
    for example in examples:
        key = signal_key(example["prompt"], example["completion"])
        generator = torch.Generator().manual_seed(int(key[:15], 16))
        shape = len(example["completion"]), temperatures, 1
        numbers.append(torch.rand(shape, generator=generator, dtype=torch.float64))
    return (torch.cat(numbers) + torch.arange(samples)) / samples


def sample_tail(logits: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Sample tokens of the tail.

    Args:
        logits: (rows, vocabulary) float32 at the student's temperature; −∞ for the k most likely tokens.
        places: (rows, samples) places in the cumulative distribution, from 0 to below 1, ascending.

    Returns:
        (rows, samples) int32 ids, ascending, which may repeat; and the (rows,) float16 entropy of the tail's own
        distribution in nats. Of an empty tail, ids and entropy are arbitrary numbers: its probability is zero.
    """
    probabilities = logits.softmax(-1, dtype=torch.float64).nan_to_num_(0.0)  # NaN if all logits are −∞
    entropy = torch.special.entr(probabilities).sum(-1).half()
    cumulative = probabilities.cumsum_(-1)
    ids = torch.searchsorted(cumulative, places * cumulative[:, -1:], right=True)
    return ids.clamp_(max=logits.shape[-1] - 1).int(), entropy
