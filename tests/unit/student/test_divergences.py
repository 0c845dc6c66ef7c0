"""The registry of methods: every entry against an independent float64 formula, and what reads the registry."""

import subprocess
import sys

import pytest
import torch
from divergence_formulas import FORMULAS, give_parameters
from running import ROOT, SCRIPTS, environment
from training_runs import change_run, log_lines, make_arguments, train_student

import train_student as script
from distill.student.divergences import METHODS, Divergence, Method
from distill.student.loss import Objective
from distill.student.options import ObjectiveOptions
from distill.student.student_run import read_run

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


@pytest.mark.parametrize("value", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("method", DIVERGENCES)
def test_value_and_slope_match_the_formula(method, value):
    teacher, student = distributions()
    p, q = (logits.log_softmax(-1) for logits in (teacher, student))
    parameters = give_parameters(method, value)
    found = Objective(method, parameters=parameters).compare(p.detach(), q.detach())
    wanted = [FORMULAS[method](*pair, **parameters) for pair in zip(p.exp().detach(), q.exp(), strict=True)]
    wanted = torch.stack(wanted)
    (gradient,) = torch.autograd.grad(wanted.sum(), student)
    assert [tuple(one.shape) for one in found] == [(5,), (5, 9), (5, 1)]
    torch.testing.assert_close(found.value, wanted.detach())
    torch.testing.assert_close(found.slope - found.total * q.exp().detach(), gradient)


class Compared(torch.autograd.Function):
    """The divergence of two sets of logits, with the gradient that its slope gives."""

    @staticmethod
    def forward(ctx, student, teacher, objective):
        q = student.log_softmax(-1)
        found = objective.compare(teacher.log_softmax(-1), q)
        ctx.save_for_backward(found.slope - found.total * q.exp())
        return found.value

    @staticmethod
    def backward(ctx, output_gradient):
        return ctx.saved_tensors[0] * output_gradient[:, None], None, None


# The weight of adaptive_kl is a constant for the gradient, but not for the value.
@pytest.mark.parametrize("method", [name for name in DIVERGENCES if name != "adaptive_kl"])
def test_the_gradient_is_that_of_the_value(method):
    teacher, student = distributions()
    objective = Objective(method, parameters=give_parameters(method, 0.3))
    assert torch.autograd.gradcheck(lambda logits: Compared.apply(logits, teacher.detach(), objective), student)


@pytest.mark.parametrize(("exponents", "limit"), [((1.0, 1e-6), "forward_kl"), ((1e-6, 1.0), "reverse_kl")])
def test_alpha_beta_contains_both_divergences(exponents, limit):
    p, q = (logits.detach().log_softmax(-1) for logits in distributions())
    found = Objective("alpha_beta", parameters=dict(zip(("ab_alpha", "ab_beta"), exponents, strict=True)))
    torch.testing.assert_close(found.compare(p, q).value, Objective(limit).compare(p, q).value, rtol=1e-4, atol=1e-5)


def test_engine_alone_prefers_the_most_likely_token():
    """It is no distance: the teacher's own distribution costs more than its most likely token."""
    p = torch.tensor([[0.7, 0.2, 0.1]]).log()
    surest = torch.tensor([[0.998, 0.001, 0.001]]).log()
    costs = [Objective("engine").compare(p, q).value.item() for q in (p, surest)]
    assert costs[0] > costs[1]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_is_described(method):
    assert method.description.endswith(".")
    assert method.formula
    assert method.paper
    assert set(method.options) <= set(ObjectiveOptions.__dataclass_fields__)


def test_the_reference_gives_every_formula():
    """After a change run `python workflow/scripts/write_config_reference.py`."""
    text = (ROOT / "config/README.md").read_text(encoding="utf-8")
    for name, method in METHODS.items():
        assert f"- `{name}`: {method.description} {method.formula} ({method.paper})." in text


def test_a_method_without_a_divergence_has_none_to_compute():
    with pytest.raises(ValueError, match="seqkd"):
        Objective("seqkd").compare(torch.zeros(1, 2), torch.zeros(1, 2))


def test_the_registry_does_not_import_torch():
    """The workflow reads it each time that it parses the configuration."""
    code = "import sys; import distill.student.student_run; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], env=environment() | {"PYTHONPATH": str(SCRIPTS)}, check=True)


# ---- A method that is added ----


@pytest.fixture
def squared(monkeypatch):
    """A made-up method, registered as `squared`: half the squared distance."""

    def squared_distance(p, q):
        slope = q.exp() * (q.exp() - p.exp())
        return Divergence((q.exp() - p.exp()).square().sum(-1) / 2, slope, slope.sum(-1, keepdim=True))

    method = Method("Half the squared distance.", "½ Σ(p − q)²", "made up", squared_distance)
    monkeypatch.setitem(METHODS, "squared", method)
    return method


def test_a_registered_method_is_on_the_command_line(squared, tmp_path, models, capsys):
    assert read_run(script.parse_args(make_arguments(tmp_path, models, "squared"))).objective.method == "squared"
    with pytest.raises(SystemExit):
        script.parse_args(["--help"])
    assert f"{{{','.join(METHODS)}}}" in capsys.readouterr().out
    without_teacher = ["--data", "d", "--out", "o", "--name", "n", "--category", "c", "--model", "m"]
    with pytest.raises(SystemExit):
        script.parse_args([*without_teacher, "--method", "squared"])
    assert "--method squared needs --teacher-model" in capsys.readouterr().err


def test_a_registered_method_trains_a_student(squared, options, records):
    run = change_run(options(), method="squared", epochs=30.0, learning_rate=1e-2, alpha=1.0, temperature=1.0)
    train_student(run, records, [])
    lines = log_lines(run)
    assert lines[-1]["kd"] < 0.8 * lines[0]["kd"]
    assert lines[0]["loss"] == pytest.approx(lines[0]["kd"], rel=1e-5)
    assert "½ Σ(p − q)²" in (run.out / "README.md").read_text(encoding="utf-8")


def test_an_unregistered_method_is_refused(tmp_path, models, capsys):
    with pytest.raises(SystemExit):
        script.parse_args(make_arguments(tmp_path, models, "squared"))
    assert "invalid choice: 'squared'" in capsys.readouterr().err
