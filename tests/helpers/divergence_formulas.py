"""An independent formula for the divergence of each method, on float64 probabilities."""

FORMULAS = {
    "forward_kl": lambda p, q, beta: (p * (p / q).log()).sum(),
    "reverse_kl": lambda p, q, beta: (q * (q / p).log()).sum(),
    "jsd": lambda p, q, beta: (
        beta * (p * (p / (beta * p + (1 - beta) * q)).log()).sum()
        + (1 - beta) * (q * (q / (beta * p + (1 - beta) * q)).log()).sum()
    ),
    "tvd": lambda p, q, beta: (p - q).abs().sum() / 2,
}
