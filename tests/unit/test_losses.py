"""Every loss against an independent float64 formula: values and all gradients."""

import math

import pytest
import torch

from distill import completions, losses

METHODS = ["forward_kl", "reverse_kl", "jsd", "tvd"]


def reference(student_logits, teacher_logits, targets, method, tau, beta, vocabulary):
    """Plain float64 formulas from probabilities, row by row."""
    ce = kd = torch.zeros((), dtype=torch.float64)
    for s, t, y in zip(student_logits.double(), teacher_logits.double(), targets, strict=True):
        ce = ce - (s - s.max()).softmax(0)[y].log()
        q, p = (s[:vocabulary] / tau).softmax(0), (t[:vocabulary] / tau).softmax(0)
        m = beta * p + (1 - beta) * q
        kd = (
            kd
            + {
                "forward_kl": (p * (p / q).log()).sum(),
                "reverse_kl": (q * (q / p).log()).sum(),
                "jsd": beta * (p * (p / m).log()).sum() + (1 - beta) * (q * (q / m).log()).sum(),
                "tvd": (p - q).abs().sum() / 2,
            }[method]
        )
    return ce, kd


@pytest.fixture
def problem():
    torch.manual_seed(3)
    rows, teacher_rows = torch.randn(11, 6, requires_grad=True), torch.randn(11, 9)
    # Padded vocabularies of different size over a shared one of 17.
    head, teacher_head = torch.nn.Linear(6, 24, bias=False), torch.nn.Linear(9, 20, bias=False)
    return rows, head, torch.randint(0, 17, (11,)), teacher_rows, teacher_head


@pytest.mark.parametrize("swap", [False, True], ids=["student wider", "teacher wider"])
@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("method", METHODS)
def test_value_and_gradients_match_float64(problem, method, tau, beta, swap):
    rows, head, targets, teacher_rows, teacher_head = problem
    if swap:
        head, teacher_head = torch.nn.Linear(6, 20, bias=False), torch.nn.Linear(9, 24, bias=False)
    options = {"method": method, "temperature": tau, "beta": beta, "vocabulary": 17}
    ce, kd = losses.distillation_terms(rows, head, targets, teacher_rows, teacher_head, chunk=4, **options)
    loss = losses.mix_terms(ce, kd, 0.3, tau)
    gradients = torch.autograd.grad(loss, [rows, head.weight])

    rows64 = rows.detach().double().requires_grad_()
    weight64 = head.weight.detach().double().requires_grad_()
    teacher64 = teacher_rows.double() @ teacher_head.weight.double().T
    ce64, kd64 = reference(rows64 @ weight64.T, teacher64, targets, method, tau, beta, 17)
    loss64 = 0.3 * tau**2 * kd64 + 0.7 * ce64
    expected = torch.autograd.grad(loss64, [rows64, weight64])
    assert ce.item() == pytest.approx(ce64.item(), rel=1e-5)
    assert kd.item() == pytest.approx(kd64.item(), rel=1e-4, abs=1e-6)
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


def test_the_padding_of_a_vocabulary_has_no_probability(problem):
    rows, head, targets, teacher_rows, teacher_head = problem
    with torch.no_grad():
        teacher_head.weight[17:] = 50.0  # a padded id that would win every row
    options = {"method": "forward_kl", "vocabulary": 17}
    _, before = losses.distillation_terms(rows, head, targets, teacher_rows, teacher_head, **options)
    with torch.no_grad():
        teacher_head.weight[17:] = -50.0
    _, after = losses.distillation_terms(rows, head, targets, teacher_rows, teacher_head, **options)
    assert before.item() == after.item()


@pytest.mark.parametrize("method", METHODS)
def test_chunk_size_changes_nothing(problem, method):
    options = {"method": method, "temperature": 2.0, "vocabulary": 17}
    sums = [torch.stack(losses.distillation_terms(*problem, chunk=chunk, **options)) for chunk in (1, 3, 11, 100)]
    for other in sums[1:]:
        torch.testing.assert_close(other, sums[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_perfect_student_has_no_divergence(problem, method):
    rows, head, targets, _, _ = problem
    _, kd = losses.distillation_terms(rows, head, targets, rows.detach(), head, method=method, vocabulary=17)
    assert abs(kd.item()) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_gradients_stay_finite_where_probabilities_vanish(method):
    # log(softmax) is -inf here; log_softmax is not.
    rows = torch.tensor([[200.0, -200.0]], requires_grad=True)
    teacher = torch.tensor([[-200.0, 200.0]])
    eye = torch.nn.Identity()
    ce, kd = losses.distillation_terms(rows, eye, torch.tensor([0]), teacher, eye, method=method, vocabulary=2)
    (gradient,) = torch.autograd.grad(ce + kd, rows)
    assert math.isfinite(kd.item())
    assert gradient.isfinite().all()


def test_without_a_completion_token_the_graph_stays_connected(problem):
    rows, head, targets, teacher_rows, teacher_head = problem
    ce, kd = losses.distillation_terms(
        rows[:0], head, targets[:0], teacher_rows[:0], teacher_head, method="forward_kl", vocabulary=17
    )
    (gradient,) = torch.autograd.grad(ce + kd, rows)
    assert ce.item() == kd.item() == 0
    assert (gradient == 0).all()


def test_no_tensor_of_all_rows_by_vocabulary_is_held():
    sizes = []

    class Head(torch.nn.Linear):
        def forward(self, part):
            sizes.append(part.shape[0])
            return super().forward(part)

    rows = torch.randn(1000, 4, requires_grad=True)
    ce, kd = losses.distillation_terms(
        rows, Head(4, 8), torch.zeros(1000, dtype=torch.long), torch.randn(1000, 4), Head(4, 8), method="tvd"
    )
    (ce + kd).backward()
    assert max(sizes) <= completions.CHUNK_ROWS


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="seqkd"):
        losses.divergence("seqkd", torch.zeros(1, 2), torch.zeros(1, 2), 0.5)


def test_completion_rows_predict_the_next_token():
    hidden = torch.arange(10.0).reshape(2, 5, 1)
    labels = torch.tensor([[-100, -100, 7, 8, -100], [-100, 5, -100, -100, -100]])
    assert completions.completion_rows(hidden, labels).flatten().tolist() == [1, 2, 5]
    assert completions.completion_targets(labels).tolist() == [7, 8, 5]
