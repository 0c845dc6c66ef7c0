"""An independent formula for the divergence of each method, on float64 probabilities."""

from distill.student.divergences import METHODS


def give_parameters(method, value=0.5):
    """The options of a method: `value`, and half of it for a second one."""
    return {name: value / (index + 1) for index, name in enumerate(METHODS[method].options)}


def kl(p, q):
    return (p * (p / q).log()).sum()


def adaptive_kl(p, q, head_mass):
    """The head token by token, and its weight as a constant."""
    head, mass = [], 0.0
    for token in sorted(range(len(p)), key=lambda one: -p[one].item()):
        if mass < head_mass:
            head.append(token)
        mass += p[token].item()
    gap = (p - q).abs().detach()
    weight = gap[head].sum() / gap.sum()
    return weight * kl(p, q) + (1 - weight) * kl(q, p)


def alpha_beta(p, q, ab_alpha, ab_beta):
    """As in ABKD, arXiv 2505.04560, definition 3.1."""
    both = ab_alpha + ab_beta
    terms = p**ab_alpha * q**ab_beta - ab_alpha / both * p**both - ab_beta / both * q**both
    return -terms.sum() / (ab_alpha * ab_beta)


FORMULAS = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd": lambda p, q, beta: beta * kl(p, beta * p + (1 - beta) * q) + (1 - beta) * kl(q, beta * p + (1 - beta) * q),
    "tvd": lambda p, q: (p - q).abs().sum() / 2,
    "skewed_kl": lambda p, q, skew: kl(p, skew * p + (1 - skew) * q),
    "skewed_reverse_kl": lambda p, q, skew: kl(q, (1 - skew) * p + skew * q),
    "adaptive_kl": adaptive_kl,
    "alpha_beta": alpha_beta,
    "engine": lambda p, q: -(q * p.log()).sum(),
}
