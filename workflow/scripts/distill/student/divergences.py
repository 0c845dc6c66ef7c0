"""Divergences between two distributions, with their derivatives by log-probabilities: pure functions, in log space."""

import math

import torch
from torch import Tensor


def divergence(method: str, p: Tensor, q: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """D between distributions over (vocabulary or buckets), and its derivative by the student's log-probabilities.

    Args:
        p, q: (rows, n) log-probabilities of teacher and student.
        beta: of `jsd`.

    Returns:
        (rows,) values; (rows, n) derivatives by q, each but for a multiple of the probability itself, which does not
        change the derivative by logits; (rows, 1) sums of these over n.

    Raises:
        ValueError: no divergence belongs to the method.
    """
    if method == "forward_kl":  # KL(p‖q)
        slope = p.exp().neg_()
        return slope.mul(q - p).sum(-1), slope, slope.sum(-1, keepdim=True)
    if method == "reverse_kl":  # KL(q‖p)
        slope = q.exp().mul_(q - p)
        value = slope.sum(-1)
        return value, slope, value[:, None]
    if method == "jsd":  # β·KL(p‖m) + (1−β)·KL(q‖m), m = βp + (1−β)q (GKD, arXiv 2306.13649)
        mixture = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
        slope = q.exp().mul_(q - mixture).mul_(1 - beta)
        of_student = slope.sum(-1)
        return p.exp().mul_(p - mixture).sum(-1).mul_(beta) + of_student, slope, of_student[:, None]
    if method == "tvd":  # ½ Σ|p − q| (f-distill, ACL 2023)
        q_exp = q.exp()
        difference = q_exp - p.exp()
        slope = q_exp.mul_(difference.sign()).mul_(0.5)
        return difference.abs_().sum(-1).mul_(0.5), slope, slope.sum(-1, keepdim=True)
    raise ValueError(f"no divergence belongs to method {method!r}")
