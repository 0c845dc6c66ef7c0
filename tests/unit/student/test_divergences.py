"""The registry of methods: every entry against an independent float64 formula, and what reads the registry."""

import subprocess
import sys

import pytest
import torch
from divergence_formulas import FORMULAS
from running import ROOT, SCRIPTS, environment

from distill.student.divergences import METHODS
from distill.student.loss import Objective

DIVERGENCES = [name for name, method in METHODS.items() if method.divergence]


def distributions(rows=5, size=9):
    """Two sets of float64 logits that need a gradient."""
    generator = torch.Generator().manual_seed(4)
    return [
        torch.randn(rows, size, dtype=torch.float64, generator=generator).requires_grad_()
        for _ in ("teacher", "student")
    ]


def test_every_divergence_has_an_independent_formula():
    assert FORMULAS.keys() == set(DIVERGENCES)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("method", DIVERGENCES)
def test_value_and_slope_match_the_formula(method, beta):
    teacher, student = distributions()
    p, q = (logits.log_softmax(-1) for logits in (teacher, student))
    found = Objective(method, beta=beta).compare(p.detach(), q.detach())
    wanted = torch.stack([FORMULAS[method](*pair, beta) for pair in zip(p.exp().detach(), q.exp(), strict=True)])
    (gradient,) = torch.autograd.grad(wanted.sum(), student)
    assert [tuple(one.shape) for one in found] == [(5,), (5, 9), (5, 1)]
    torch.testing.assert_close(found.value, wanted.detach())
    torch.testing.assert_close(found.slope - found.total * q.exp().detach(), gradient)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_is_described(method):
    assert method.description.endswith(".")
    assert method.formula
    assert method.paper
    assert set(method.options) <= set(Objective._fields)


def test_the_documentation_lists_every_method():
    text = (ROOT / "docs/distillation.md").read_text(encoding="utf-8")
    for name, method in METHODS.items():
        formula = method.formula.replace("|", r"\|") if method.divergence else "none"
        assert f"| `{name}` | {formula}" in text


def test_a_method_without_a_divergence_has_none_to_compute():
    with pytest.raises(ValueError, match="seqkd"):
        Objective("seqkd").compare(torch.zeros(1, 2), torch.zeros(1, 2))


def test_the_registry_does_not_import_torch():
    """The workflow reads it each time that it parses the configuration."""
    code = "import sys; import distill.student.options; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], env=environment() | {"PYTHONPATH": str(SCRIPTS)}, check=True)
