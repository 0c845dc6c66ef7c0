"""Distillation losses on completion rows, projected and reduced a chunk at a time.

No function here holds a (batch, length, vocabulary) tensor: the hidden states of completion positions are gathered
first, then each chunk of rows is projected to logits, reduced in float32 log space and recomputed in the backward
pass. Every divergence is a sum over rows; who calls divides by the completion tokens of the optimizer step.
"""

import itertools
import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distill.completions import CHUNK_ROWS, Head


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(p‖q) summed over rows; both (rows, vocabulary) log-probabilities, p the teacher's, q the student's."""
    return (teacher.exp() * (teacher - student)).sum()


def reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(q‖p) summed over rows; arguments as in `forward_kl`."""
    return (student.exp() * (student - teacher)).sum()


def jensen_shannon(teacher: Tensor, student: Tensor, beta: float) -> Tensor:
    """β·KL(p‖m) + (1−β)·KL(q‖m) with m = βp + (1−β)q, summed over rows (GKD, arXiv 2306.13649).

    Args:
        beta: weight of the teacher in the mixture, above 0 and below 1.
    """
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * forward_kl(teacher, mixture) + (1 - beta) * forward_kl(student, mixture)


def total_variation(teacher: Tensor, student: Tensor) -> Tensor:
    """½ Σ|p − q| summed over rows (f-distill, ACL 2023); arguments as in `forward_kl`."""
    return 0.5 * (teacher.exp() - student.exp()).abs().sum()


def divergence(method: str, teacher: Tensor, student: Tensor, beta: float) -> Tensor:
    """The divergence of a method: `forward_kl`, `reverse_kl`, `jsd` or `tvd`.

    Raises:
        ValueError: no such method.
    """
    if method == "forward_kl":
        return forward_kl(teacher, student)
    if method == "reverse_kl":
        return reverse_kl(teacher, student)
    if method == "jsd":
        return jensen_shannon(teacher, student, beta)
    if method == "tvd":
        return total_variation(teacher, student)
    raise ValueError(f"no divergence belongs to method {method!r}")


def distillation_terms(
    rows: Tensor,
    head: Head,
    targets: Tensor,
    teacher_rows: Tensor | None = None,
    teacher_head: Head | None = None,
    *,
    method: str = "seqkd",
    temperature: float = 1.0,
    beta: float = 0.5,
    vocabulary: int | None = None,
    chunk: int = CHUNK_ROWS,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and divergence, each summed over completion rows.

    Args:
        rows: (rows, width) hidden states of the student.
        head: projects them to logits, (rows, student's padded vocabulary).
        targets: (rows,) token ids.
        teacher_rows: (rows, teacher's width) for the same positions; None for `seqkd`.
        teacher_head: the teacher's projection.
        method: `seqkd` (no divergence) or one of `divergence`.
        temperature: divides both models' logits before the divergence.
        beta: of `jsd`.
        vocabulary: ids from 0 that both tokenizers share; logits above are cut off for the divergence, so that the
            padding of either vocabulary has no probability. Cross-entropy is over the student's own vocabulary.
        chunk: rows projected at a time.

    Returns:
        Two float32 scalars. Without a row both are 0 and still hang on the graph.
    """
    if rows.shape[0] == 0:
        nothing = rows.float().sum() * 0.0
        return nothing, nothing

    def terms(part: Tensor, target: Tensor, teacher_part: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = head(part).float()
        ce = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
        if teacher_part is None or teacher_head is None:
            return ce, torch.zeros_like(ce)
        with torch.no_grad(), torch.autocast(part.device.type, enabled=False):
            teacher_logits = teacher_head(teacher_part).float()
        teacher_logp = (teacher_logits[:, :vocabulary] / temperature).log_softmax(dim=-1)
        student_logp = (logits[:, :vocabulary] / temperature).log_softmax(dim=-1)
        return ce, divergence(method, teacher_logp, student_logp, beta)

    sums = torch.zeros(2, device=rows.device)
    teacher_parts = itertools.repeat(None) if teacher_rows is None else teacher_rows.split(chunk)
    for part, target, teacher_part in zip(rows.split(chunk), targets.split(chunk), teacher_parts, strict=False):
        sums = sums + torch.stack(checkpoint(terms, part, target, teacher_part, use_reentrant=False))
    return sums[0], sums[1]


def mix_terms(ce: Tensor, kd: Tensor, alpha: float, temperature: float) -> Tensor:
    """alpha · τ² · divergence + (1 − alpha) · cross-entropy (Hinton et al., arXiv 1503.02531)."""
    return alpha * temperature**2 * kd + (1 - alpha) * ce
