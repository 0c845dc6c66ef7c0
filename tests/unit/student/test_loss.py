"""Values and gradients of the distillation loss, compared with independent float64 formulas."""

import math

import pytest
import torch
from divergence_formulas import FORMULAS, give_parameters
from fake_cuda_runs import run_on_fake_cuda

from distill.models import completions
from distill.models.completions import collate
from distill.models.logits import LogitTransform
from distill.student import divergences, fused_loss
from distill.student.fused_loss import add_product, distillation_loss, try_mixed_product
from distill.student.loss import (
    ExactTeacher,
    MixedTeacher,
    Objective,
    SampledTeacher,
    TopKTeacher,
    sampled_divergence,
)
from distill.teacher.tail_sampling import sample_tail

METHODS = list(FORMULAS)
SHARED = 17
PARAMETERS = {method: give_parameters(method) for method in METHODS}


def reference(student_logits, teacher_logits, targets, method, tau, value, vocabulary, top_k=None):
    """Cross-entropy and divergence in float64 from probabilities, row by row; with `top_k` over k + 1 buckets."""
    ce = kd = torch.zeros((), dtype=torch.float64)
    for s, t, y in zip(student_logits.double(), teacher_logits.double(), targets, strict=True):
        ce = ce - (s - s.max()).softmax(0)[y].log()
        q, p = (s[:vocabulary] / tau).softmax(0), (t[:vocabulary] / tau).softmax(0)
        if top_k:
            top = p.topk(top_k).indices
            rest = torch.ones(len(p), dtype=torch.bool).index_fill(0, top, False)
            p, q = (torch.cat([one[top], one[rest].sum()[None]]) for one in (p, q))
        kd = kd + FORMULAS[method](p, q, **give_parameters(method, value))
    return ce, kd


def top_k_teacher(teacher_logits, k, tau, vocabulary=SHARED):
    """The cached signal at a temperature, computed in float64."""
    logp = (teacher_logits.double()[:, :vocabulary] / tau).log_softmax(-1)
    top = logp.topk(k)
    tail = logp.exp().scatter(1, top.indices, 0.0).sum(-1).log()
    return TopKTeacher(top.indices.int(), top.values.float(), tail.float())


@pytest.fixture
def problem():
    torch.manual_seed(3)
    rows, teacher_rows = torch.randn(11, 6, requires_grad=True), torch.randn(11, 9)
    # Padded vocabularies of different size over a shared one of 17.
    head, teacher_head = torch.nn.Linear(6, 24, bias=False), torch.nn.Linear(9, 20, bias=False)
    return rows, head, torch.randint(0, SHARED, (11,)), ExactTeacher(teacher_rows, teacher_head)


def logits_of(teacher):
    return (teacher.rows @ teacher.head.weight.T).detach()


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("swap", [False, True], ids=["student wider", "teacher wider"])
@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("value", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("top_k", [None, 1, 5])
@pytest.mark.parametrize("method", METHODS)
def test_value_and_gradients_match_float64(problem, method, top_k, tau, value, swap, bias):
    rows, head, targets, teacher = problem
    if swap or bias:
        head = torch.nn.Linear(6, 20 if swap else 24, bias=bias)
        teacher = ExactTeacher(teacher.rows, torch.nn.Linear(9, 24 if swap else 20, bias=False))
    logits = logits_of(teacher)
    given = top_k_teacher(logits, top_k, tau) if top_k else teacher
    objective = Objective(method, tau, 0.3, give_parameters(method, value), SHARED)
    found = distillation_loss(rows, head, targets, given, objective, chunk=4)
    gradients = torch.autograd.grad(found.loss, [rows, *head.parameters()])

    leaves = [one.detach().double().requires_grad_() for one in (rows, *head.parameters())]
    student = leaves[0] @ leaves[1].T + (leaves[2] if bias else 0.0)
    ce, kd = reference(student, logits, targets, method, tau, value, SHARED, top_k)
    loss = 0.3 * tau**2 * kd + 0.7 * ce
    expected = torch.autograd.grad(loss, leaves)
    assert found.ce.item() == pytest.approx(ce.item(), rel=1e-5)
    assert found.kd.item() == pytest.approx(kd.item(), rel=1e-4, abs=1e-6)
    assert found.loss.item() == pytest.approx(loss.item(), rel=1e-4)
    for one, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("cap", [None, 3.0], ids=["no cap", "cap"])
@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("method", METHODS)
def test_scaled_and_capped_logits_match_float64(problem, method, top_k, cap, lora, bias):
    """Student and teacher change their logits after the head in different ways."""
    rows, head, targets, teacher = problem
    if bias:
        head = torch.nn.Linear(6, 24)
    if lora:
        head = adapt(head)
    mine, theirs = LogitTransform(4.0, cap), LogitTransform(0.5, cap and 2.0)
    teacher = ExactTeacher(teacher.rows, teacher.head, theirs)
    given_logits = change_logits(logits_of(teacher).double(), 0.5, cap and 2.0)
    given = top_k_teacher(given_logits, top_k, 2.0) if top_k else teacher
    objective = Objective(method, 2.0, 0.3, give_parameters(method, 0.4), SHARED)
    weights = [one for one in head.parameters() if one.requires_grad]
    found = distillation_loss(rows, head, targets, given, objective, chunk=4, transform=mine)
    gradients = torch.autograd.grad(found.loss, [rows, *weights])

    ce, kd = reference(
        change_logits(head(rows).double(), 4.0, cap), given_logits, targets, method, 2.0, 0.4, SHARED, top_k
    )
    loss = 0.3 * 2.0**2 * kd + 0.7 * ce
    expected = torch.autograd.grad(loss, [rows, *weights])
    assert found.ce.item() == pytest.approx(ce.item(), rel=1e-5)
    assert found.kd.item() == pytest.approx(kd.item(), rel=1e-4, abs=1e-6)
    for one, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scale", [None, 0.25], ids=["late", "early"])
@pytest.mark.parametrize("method", METHODS)
def test_rows_of_several_teachers_match_float64(problem, method, scale):
    """Each row is compared with the logits of its own teacher: another width, vocabulary and transform."""
    rows, head, targets, first = problem
    second = ExactTeacher(torch.randn(11, 4), torch.nn.Linear(4, 30, bias=False), LogitTransform(0.5, None))
    index = torch.tensor([0, 3, 4, 10]), torch.tensor([1, 2, 5, 6, 7, 8, 9])
    parts = [one._replace(rows=one.rows[own]) for one, own in zip((first, second), index, strict=True)]
    given = MixedTeacher(tuple(zip(index, parts, strict=True)))
    objective = Objective(method, 2.0, 0.3, give_parameters(method, 0.4), SHARED)
    found = distillation_loss(rows, head, targets, given, objective, chunk=3, scale=scale)
    (found.loss * (scale or 1.0)).backward()

    logits = torch.zeros(11, SHARED)
    logits[index[0]] = logits_of(first)[index[0], :SHARED]
    logits[index[1]] = 0.5 * logits_of(second)[index[1], :SHARED]
    leaves = [one.detach().double().requires_grad_() for one in (rows, head.weight)]
    ce, kd = reference(leaves[0] @ leaves[1].T, logits, targets, method, 2.0, 0.4, SHARED)
    loss = 0.3 * 2.0**2 * kd + 0.7 * ce
    (loss * (scale or 1.0)).backward()
    assert found.ce.item() == pytest.approx(ce.item(), rel=1e-5)
    assert found.kd.item() == pytest.approx(kd.item(), rel=1e-4, abs=1e-6)
    assert found.loss.item() == pytest.approx(loss.item(), rel=1e-4)
    for one, wanted in zip((rows, head.weight), leaves, strict=True):
        torch.testing.assert_close(one.grad.double(), wanted.grad, rtol=1e-4, atol=1e-5)


def change_logits(raw, scale, cap):
    """The formula of soft-capped models, in the dtype of `raw`."""
    return raw * scale if cap is None else cap * torch.tanh(raw * scale / cap)


def adapt(head):
    """A head with LoRA weights that are not zero."""
    from peft import LoraConfig, inject_adapter_in_model

    holder = torch.nn.ModuleDict({"lm_head": head})
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False), holder)
    return holder["lm_head"]


# The weight in adaptive_kl is a constant for the gradient, but not for the value.
@pytest.mark.parametrize("top_k", [None, 4])
@pytest.mark.parametrize("method", [method for method in METHODS if method != "adaptive_kl"])
def test_gradients_match_finite_differences(method, top_k):
    """Without any formula of the gradient, in float64."""
    torch.manual_seed(1)
    head, teacher_head = (torch.nn.Linear(4, 12, bias=False, dtype=torch.float64) for _ in range(2))
    rows, targets = torch.randn(3, 4, dtype=torch.float64), torch.tensor([1, 0, 11])
    teacher = ExactTeacher(torch.randn(3, 4, dtype=torch.float64), teacher_head)
    if top_k:
        kept = top_k_teacher(logits_of(teacher), top_k, 2.0, 12)
        teacher = TopKTeacher(kept.ids, kept.logprobs.double(), kept.log_tail.double())
    objective = Objective(method, 2.0, 0.7, give_parameters(method, 0.4), None)

    @torch.no_grad()
    def loss_at(place, step):
        moved = rows.flatten().index_add(0, torch.tensor([place]), torch.tensor([step], dtype=torch.float64))
        return distillation_loss(moved.view_as(rows), head, targets, teacher, objective).loss.item()

    leaf = rows.clone().requires_grad_()
    terms = distillation_loss(leaf, head, targets, teacher, objective, chunk=2)
    assert terms.loss.dtype == torch.float64
    (gradient,) = torch.autograd.grad(terms.loss, leaf)
    found = [(loss_at(place, 1e-6) - loss_at(place, -1e-6)) / 2e-6 for place in range(rows.numel())]
    torch.testing.assert_close(gradient.flatten(), torch.tensor(found, dtype=torch.float64), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["lora", "lora with dropout off", "soft-capped", "bfloat16"])
@pytest.mark.parametrize("method", [*METHODS, "seqkd"])
def test_other_heads_and_dtypes_match_autograd_over_all_logits(problem, method, kind):
    rows, head, targets, teacher = problem
    if kind.startswith("lora"):
        head = adapt(head)
    elif kind == "soft-capped":
        head = torch.nn.Sequential(head, torch.nn.Tanh())
    elif kind == "bfloat16":
        rows = rows.detach().bfloat16().requires_grad_()
        head = head.bfloat16()
    objective = Objective(method, 2.0, 0.3, give_parameters(method, 0.5), SHARED)
    given = None if method == "seqkd" else teacher
    weights = [one for one in head.parameters() if one.requires_grad]
    found = distillation_loss(rows, head, targets, given, objective, chunk=4)
    gradients = torch.autograd.grad(found.loss, [rows, *weights])

    logits = head(rows).double()
    ce, kd = reference(logits, logits_of(teacher), targets, "tvd" if given is None else method, 2.0, 0.5, SHARED)
    loss = ce if given is None else 0.3 * 4 * kd + 0.7 * ce
    expected = torch.autograd.grad(loss, [rows, *weights])
    assert found.loss.item() == pytest.approx(loss.item(), rel=1e-4)
    tolerance = {"rtol": 2e-2, "atol": 5e-2} if kind == "bfloat16" else {"rtol": 1e-4, "atol": 1e-5}
    for one, wanted in zip(gradients, expected, strict=True):
        assert one.dtype == wanted.dtype
        torch.testing.assert_close(one, wanted, **tolerance)


@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("method", METHODS)
def test_under_autocast_weights_keep_float32_gradients(problem, method, top_k):
    rows, head, targets, teacher = problem
    given = top_k_teacher(logits_of(teacher), top_k, 2.0) if top_k else teacher
    objective = Objective(method, 2.0, 0.3, give_parameters(method, 0.5), SHARED)
    with torch.autocast("cpu", torch.bfloat16):
        found = distillation_loss(rows, head, targets, given, objective, chunk=4)
    exact = distillation_loss(rows, head, targets, given, objective)
    assert found.loss.dtype == torch.float32
    for one, wanted in zip(
        *(torch.autograd.grad(terms.loss, [rows, head.weight]) for terms in (found, exact)), strict=True
    ):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, wanted, rtol=3e-2, atol=5e-2)


def test_tied_weights_get_both_gradients():
    torch.manual_seed(0)
    embedding, head = torch.nn.Embedding(12, 4), torch.nn.Linear(4, 12, bias=False)
    head.weight = embedding.weight
    ids, targets = torch.tensor([3, 5, 7]), torch.tensor([1, 2, 3])
    found = distillation_loss(embedding(ids), head, targets, None, Objective("seqkd"))
    (gradient,) = torch.autograd.grad(found.loss, [embedding.weight])
    weight = embedding.weight.detach().double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(weight[ids] @ weight.T, targets, reduction="sum")
    torch.testing.assert_close(gradient.double(), torch.autograd.grad(loss, weight)[0], rtol=1e-5, atol=1e-6)


def make_steps(bias, tied, hook=False):
    """Rows of a tied or untied head in two micro-batches, and a function that gives their loss."""
    torch.manual_seed(5)
    embedding, head = torch.nn.Embedding(12, 4), torch.nn.Linear(4, 12, bias=bias)
    if tied:
        head.weight = embedding.weight
    if hook:
        head.weight.register_hook(lambda gradient: gradient * 3)
    ids, targets = torch.tensor([[3, 5, 7], [1, 5, 9]]), torch.tensor([[1, 2, 3], [4, 1, 0]])

    def score(step, scale):
        return distillation_loss(embedding(ids[step]), head, targets[step], None, Objective("seqkd"), 2, scale=scale)

    return [*embedding.parameters(), *head.parameters()], score


@pytest.mark.parametrize("hook", [False, True], ids=["no hook", "hook"])
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_gradients_added_in_the_forward_pass_are_those_of_the_backward_pass(bias, tied, hook):
    gradients = []
    for is_early in (False, True):
        weights, score = make_steps(bias, tied, hook)
        for step in range(2):
            loss = score(step, 0.3 if is_early else None).loss * 0.3
            early = weights[-1].grad is not None
            loss.backward()
            assert step or early == (is_early and (bias or not hook))
        gradients.append([one.grad for one in weights])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-7)


def test_gradients_accumulate_in_one_tensor():
    weights, score = make_steps(bias=False, tied=False)
    (score(0, 0.5).loss * 0.5).backward()
    first = weights[1].grad
    (score(1, 0.5).loss * 0.5).backward()
    assert weights[1].grad is first


def test_a_loss_that_is_not_multiplied_by_its_scale_is_an_error():
    _, score = make_steps(bias=False, tied=False)
    with pytest.raises(RuntimeError, match="not multiplied by its scale"):
        score(0, 0.5).loss.backward()


def test_weights_of_16_bits_keep_their_gradient_in_float32_until_the_backward_pass():
    head, rows = torch.nn.Linear(4, 12, dtype=torch.bfloat16), torch.randn(5, 4, dtype=torch.bfloat16)
    loss = distillation_loss(rows, head, torch.zeros(5, dtype=torch.long), None, Objective("seqkd"), scale=1.0).loss
    assert head.weight.grad is None
    loss.backward()
    assert head.weight.grad.dtype == torch.bfloat16


def test_the_head_needs_no_second_gradient_and_no_temporary_on_a_gpu():
    """Peak on fake CUDA tensors of two micro-batches with autocast, in sizes of the head's float32 gradient."""
    found = run_on_fake_cuda("""
        from distill.student import fused_loss
        from distill.student.fused_loss import distillation_loss
        from distill.student.loss import Objective
        fused_loss.CHUNK_ELEMENTS = fused_loss.BLOCK_ELEMENTS = {"cpu": 2**14, "cuda": 2**14}
        head = torch.nn.Linear(512, 2**14, bias=False, device="cuda")
        live = LiveMemory("cuda")
        live.hold(head)
        weights, found = live.now, []
        for scale in (None, 0.5):
            head.weight.grad = None
            for step in (1, 2):
                rows = torch.ones(16, 512, device="cuda", requires_grad=True)
                targets = torch.zeros(16, dtype=torch.long, device="cuda")
                live.phase = f"{scale} {step}"
                with live, torch.autocast("cuda", torch.bfloat16):
                    loss = distillation_loss(rows, head, targets, None, Objective("seqkd"), scale=scale).loss
                    loss = loss * 0.5
                with live:
                    loss.backward()
                del loss, rows, targets
                # A copy of the weights in 16 bits is in memory, too.
                found.append((live.peaks[live.phase] - weights - weights / 2) / weights)
    """)
    # Without the scale, the second micro-batch's gradient is beside the first one's.
    assert found == pytest.approx([1, 2, 1, 1], abs=0.1)


def test_frozen_heads_get_no_gradient(problem):
    rows, head, targets, teacher = problem
    head.requires_grad_(False)
    distillation_loss(
        rows, head, targets, teacher, Objective("jsd", parameters=PARAMETERS["jsd"], vocabulary=SHARED)
    ).loss.backward()
    assert head.weight.grad is None
    assert rows.grad.norm() > 0


def test_values_are_the_same_without_gradients(problem):
    rows, head, targets, teacher = problem
    objective = Objective("forward_kl", 2.0, vocabulary=SHARED)
    with torch.no_grad():
        found = distillation_loss(rows, head, targets, teacher, objective)
    wanted = distillation_loss(rows, head, targets, teacher, objective)
    assert [one.item() for one in found[:3]] == [one.item() for one in wanted[:3]]


def test_a_second_backward_pass_is_an_error(problem):
    rows, head, targets, teacher = problem
    loss = distillation_loss(rows, head, targets, teacher, Objective("tvd", vocabulary=SHARED)).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up"):
        loss.backward()


def test_gradient_norms_of_both_terms(problem):
    """They show whether one term dominates the gradient."""
    rows, head, targets, teacher = problem
    found = distillation_loss(rows, head, targets, teacher, Objective("forward_kl", 2.0, 0.3, vocabulary=SHARED))
    logits = head(rows).detach().double().requires_grad_()
    ce, kd = reference(logits, logits_of(teacher), targets, "forward_kl", 2.0, 0.5, SHARED)
    of_ce, of_kd = torch.autograd.grad(0.7 * ce, logits)[0], torch.autograd.grad(0.3 * 4 * kd, logits)[0]
    assert found.ce_grad.item() == pytest.approx((of_ce**2).sum().item(), rel=1e-4)
    assert found.kd_grad.item() == pytest.approx((of_kd**2).sum().item(), rel=1e-4)


def test_on_policy_steps_have_no_cross_entropy_term(problem):
    rows, head, targets, teacher = problem
    found = distillation_loss(
        rows, head, targets, teacher, Objective("jsd", 2.0, 0.25, {"beta": 0.5}, vocabulary=SHARED, is_on_policy=True)
    )
    assert found.loss.item() == pytest.approx(found.kd.item(), rel=1e-6)  # 0.25 · 2²


@pytest.mark.parametrize("top_k", [None, 4])
def test_the_padding_of_a_vocabulary_has_no_probability(problem, top_k):
    rows, head, targets, teacher = problem
    objective = Objective("forward_kl", vocabulary=SHARED)
    found = []
    for value in (50.0, -50.0):  # padding ids with the largest, or the smallest, logit of every row
        with torch.no_grad():
            teacher.head.weight[SHARED:] = value
        given = top_k_teacher(logits_of(teacher), top_k, 1.0) if top_k else teacher
        found.append(distillation_loss(rows, head, targets, given, objective).kd.item())
    assert found[0] == found[1]


@pytest.mark.parametrize("method", METHODS)
def test_tokens_of_the_teacher_alone_form_no_bucket(problem, method):
    """Cached ids outside the shared vocabulary are ignored."""
    rows, head, targets, teacher = problem
    logits = logits_of(teacher)
    logits[:, SHARED] = logits[:, :SHARED].mean(-1)  # so that other tokens have probability too
    over_all = top_k_teacher(logits, SHARED + 1, 1.0, SHARED + 1)  # all ids, one of them the teacher's alone
    objective = Objective(method, parameters=PARAMETERS[method], vocabulary=SHARED)
    found = distillation_loss(rows, head, targets, over_all, objective)
    wanted = distillation_loss(rows, head, targets, top_k_teacher(logits, SHARED - 1, 1.0, SHARED), objective)
    assert found.kd.item() == pytest.approx(wanted.kd.item(), rel=1e-4)
    assert torch.autograd.grad(found.loss, rows)[0].isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_buckets_are_a_lower_bound(problem, method):
    rows, head, targets, teacher = problem
    objective = Objective(method, 2.0, parameters=PARAMETERS[method], vocabulary=SHARED)
    exact = distillation_loss(rows, head, targets, teacher, objective).kd.item()
    kept = [
        distillation_loss(rows, head, targets, top_k_teacher(logits_of(teacher), k, 2.0), objective).kd.item()
        for k in (2, 8, 16)
    ]
    assert kept[0] < kept[1] < kept[2] <= exact * (1 + 1e-5)
    assert kept[2] == pytest.approx(exact, rel=1e-3)  # 16 of 17 tokens and one as the tail are exact


def test_the_tail_bucket_penalises_probability_outside_the_top_k():
    """The teacher has two tokens; a student with all its probability elsewhere is pulled towards them."""
    teacher = TopKTeacher(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]).log(), torch.tensor([math.log(1e-6)]))
    rows = torch.tensor([[0.0, 0.0, 9.0, 9.0]], requires_grad=True)
    eye = torch.nn.Identity()
    loss = distillation_loss(rows, eye, torch.tensor([0]), teacher, Objective("forward_kl", 1.0, 1.0)).loss
    (gradient,) = torch.autograd.grad(loss, rows)
    assert loss.item() > 5
    assert (gradient[0, :2] < -0.4).all()
    assert (gradient[0, 2:] > 0.4).all()


@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("method", METHODS)
def test_chunk_and_block_sizes_do_not_change_the_result(problem, monkeypatch, method, top_k):
    rows, head, targets, teacher = problem
    given = top_k_teacher(logits_of(teacher), top_k, 2.0) if top_k else teacher
    objective = Objective(method, 2.0, parameters=PARAMETERS[method], vocabulary=SHARED)
    found = []
    for chunk, block in ((1, 1), (3, 1), (11, 4), (11, 100), (100, 3), (None, None)):
        if block:
            monkeypatch.setattr(fused_loss, "BLOCK_ELEMENTS", {"cpu": block * 24, "cuda": 24})
        terms = distillation_loss(rows, head, targets, given, objective, chunk)
        found.append([*(one.detach() for one in terms), *torch.autograd.grad(terms.loss, [rows, head.weight])])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@pytest.mark.parametrize("method", [method for method in METHODS if method != "engine"])
def test_a_student_equal_to_its_teacher_has_no_divergence(problem, method):
    rows, head, targets, _ = problem
    objective = Objective(method, 1.0, 1.0, PARAMETERS[method], SHARED)
    for given in (
        ExactTeacher(rows.detach(), head),
        top_k_teacher((rows @ head.weight.T).detach(), 5, 1.0),
    ):
        found = distillation_loss(rows, head, targets, given, objective)
        assert abs(found.kd.item()) < 1e-5
        assert torch.autograd.grad(found.loss, rows)[0].abs().max() < (1.0 if method == "tvd" else 1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("top_k", [None, 1])
def test_gradients_are_finite_for_vanishing_probabilities(method, top_k):
    # log(softmax) is -inf here; log_softmax is not.
    rows = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    logits = torch.tensor([[-200.0, 200.0, 0.0]])
    eye = torch.nn.Identity()
    given = ExactTeacher(logits, eye)
    if top_k:
        given = TopKTeacher(torch.tensor([[1]]), torch.tensor([[0.0]]), torch.tensor([-200.0]))
    found = distillation_loss(rows, eye, torch.tensor([0]), given, Objective(method, parameters=PARAMETERS[method]))
    (gradient,) = torch.autograd.grad(found.loss, rows)
    assert math.isfinite(found.kd.item())
    assert gradient.isfinite().all()


def test_tails_are_finite_if_both_models_are_certain():
    """Both models put all float32 probability on the top token."""
    rows = torch.tensor([[0.0, 300.0, 0.0]], requires_grad=True)
    given = TopKTeacher(torch.tensor([[1]]), torch.tensor([[0.0]]), torch.tensor([-60000.0]))
    for method in METHODS:
        found = distillation_loss(
            rows, torch.nn.Identity(), torch.tensor([1]), given, Objective(method, parameters=PARAMETERS[method])
        )
        assert abs(found.kd.item()) < 1e-5
        assert torch.autograd.grad(found.loss, rows)[0].abs().max() < 1.0


def test_without_completion_tokens_the_loss_is_attached_to_autograd(problem):
    rows, head, targets, teacher = problem
    empty = ExactTeacher(teacher.rows[:0], teacher.head)
    found = distillation_loss(rows[:0], head, targets[:0], empty, Objective("forward_kl", vocabulary=SHARED))
    gradients = torch.autograd.grad(found.loss, [rows, head.weight])
    assert found.ce.item() == found.kd.item() == found.loss.item() == 0
    assert all((gradient == 0).all() for gradient in gradients)


def test_no_tensor_has_the_logits_of_all_rows(monkeypatch):
    """Checks the size of every tensor that forward and backward pass create."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for one in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(one, torch.Tensor):
                    largest = max(largest, one.numel())
            return result

    vocabulary, count = 4096, 1000
    monkeypatch.setattr(fused_loss, "CHUNK_ELEMENTS", {"cpu": 64 * vocabulary, "cuda": 64 * vocabulary})
    rows = torch.randn(count, 4, requires_grad=True)
    head = torch.nn.Linear(4, vocabulary)
    teacher = ExactTeacher(torch.randn(count, 4), torch.nn.Linear(4, vocabulary).requires_grad_(False))
    with Largest():
        distillation_loss(
            rows, head, torch.zeros(count, dtype=torch.long), teacher, Objective("jsd", parameters=PARAMETERS["jsd"])
        ).loss.backward()
    assert largest == 64 * vocabulary


# ---- A sampled tail ----

LINEAR = [name for name in METHODS if divergences.METHODS[name].is_linear]


def sample(teacher_logits, k, tau, numbers, samples=4, vocabulary=SHARED):
    """The signal of the project's code with these random numbers, (rows,), but in float64 instead of float16."""
    logits = teacher_logits[:, :vocabulary].double()
    kept = top_k_teacher(logits, k, tau, vocabulary)
    tail = (logits / tau).scatter(1, kept.ids.long(), -math.inf)
    ids, _ = sample_tail(tail, (numbers[:, None] + torch.arange(samples)) / samples)
    r = tail.softmax(-1)
    entropy = -torch.special.xlogy(r, r).sum(-1)
    return SampledTeacher(kept.ids, kept.logprobs.double(), kept.log_tail.double(), ids, entropy)


def plain_estimate(student_logits, teacher_logits, given, tau):
    """KL in float64 with the drawn counts in the place of the tail's probabilities, and their gradient by autograd."""
    kd = torch.zeros((), dtype=torch.float64)
    for s, t, top, drawn in zip(student_logits, teacher_logits, given.ids.long(), given.tail_ids.long(), strict=True):
        log_q, p = (s / tau).log_softmax(0), (t / tau).softmax(0)
        rest = torch.ones(len(p), dtype=torch.bool).index_fill(0, top, False)
        weights = p[rest].sum() / len(drawn) * torch.bincount(drawn, minlength=len(p))
        kd = kd + (p * p.log()).sum() - (p[top] * log_q[top]).sum() - (weights * log_q).sum()
    return kd


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("k", [1, 5, 16])
def test_value_and_gradient_of_a_sampled_tail_match_float64(problem, method, tau, k):
    rows, head, targets, teacher = problem
    numbers = torch.rand(11, dtype=torch.float64)
    given = sample(logits_of(teacher), k, tau, numbers)
    single = SampledTeacher(*(one.float() if one.is_floating_point() else one for one in given))
    objective = Objective(method, tau, 0.3, vocabulary=SHARED)
    found = distillation_loss(rows, head, targets, single, objective, chunk=4)
    gradients = torch.autograd.grad(found.loss, [rows, head.weight])

    leaves = [one.detach().double().requires_grad_() for one in (rows, head.weight)]
    logits = leaves[0] @ leaves[1].T
    ce, _ = reference(logits, logits_of(teacher), targets, method, tau, 0.5, SHARED)
    kd = plain_estimate(logits[:, :SHARED], logits_of(teacher)[:, :SHARED].double(), given, tau)
    expected = torch.autograd.grad(0.3 * tau**2 * kd + 0.7 * ce, leaves)
    assert found.kd.item() == pytest.approx(kd.item(), rel=1e-4, abs=1e-5)
    for one, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_the_mean_over_draws_is_the_exact_value_and_gradient_which_those_of_buckets_are_not(problem, method, tau):
    rows, head, targets, teacher = problem
    objective = Objective(method, tau, 1.0, vocabulary=SHARED)

    def measure(given):
        leaf = rows.detach().double().requires_grad_()
        terms = distillation_loss(leaf, head.double(), targets, given, objective)
        return torch.cat([terms.kd[None].detach(), torch.autograd.grad(terms.loss, leaf)[0].flatten()])

    logits = logits_of(teacher)
    exact = measure(ExactTeacher(teacher.rows.double(), teacher.head.double()))
    generator, draws = torch.Generator().manual_seed(1), 1000
    numbers = torch.rand(draws, 11, generator=generator, dtype=torch.float64)
    found = torch.stack([measure(sample(logits, 2, tau, number)) for number in numbers])
    errors = found.std(0) / math.sqrt(draws)
    assert (errors > 0).all()
    deviations = (found.mean(0) - exact) / errors
    assert deviations.abs().max() < 4.5  # of 67 numbers
    assert deviations.square().mean() < 2
    bucket = measure(top_k_teacher(logits, 2, tau))
    assert bucket[0] < exact[0] - 20 * errors[0]
    assert ((bucket - exact).abs() / errors).median() > 5


def test_tokens_of_the_teacher_alone_are_left_out_of_a_sampled_tail():
    """The probabilities of the others are those of the exact divergence, which is over the shared tokens."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, 3.0, 0.5]])
    student = torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64, requires_grad=True)
    p = logits.double().softmax(-1)[0]
    # The three most likely tokens are 4, 0 and 1; of the sample 2, 3, 5 and 5 only 2 is shared.
    tail = p[[2, 3, 5]].sum().log()[None]
    given = SampledTeacher(
        torch.tensor([[4, 0, 1]]), p[[4, 0, 1]].log()[None], tail, torch.tensor([[2, 3, 5, 5]]), torch.tensor([0.9])
    )
    value, gradient = sampled_divergence(student.detach(), given, Objective("forward_kl", 1.0))
    weights = torch.stack([p[0], p[1], tail.exp()[0] / 4])
    weights = weights / weights.sum()
    torch.testing.assert_close(gradient[0], student.detach().softmax(-1)[0] - weights)
    assert math.isfinite(value.item())


@pytest.mark.parametrize("method", LINEAR)
def test_a_sample_of_a_tail_of_nearly_nothing_is_finite(method):
    rows = torch.tensor([[0.0, 300.0, 0.0]], requires_grad=True)
    given = SampledTeacher(
        torch.tensor([[1]]),
        torch.tensor([[0.0]]),
        torch.tensor([-60000.0]),
        torch.tensor([[0, 2]]),
        torch.tensor([0.7]),
    )
    found = distillation_loss(
        rows, torch.nn.Identity(), torch.tensor([1]), given, Objective(method, parameters=PARAMETERS[method])
    )
    assert abs(found.kd.item()) < 1e-5
    assert torch.autograd.grad(found.loss, rows)[0].abs().max() < 1.0


@pytest.mark.parametrize("method", LINEAR)
def test_chunks_and_blocks_of_a_sampled_tail_do_not_change_the_result(problem, monkeypatch, method):
    rows, head, targets, teacher = problem
    given = sample(logits_of(teacher), 5, 2.0, torch.rand(11, dtype=torch.float64))
    found = []
    for chunk, block in ((3, 1), (11, 4), (None, None)):
        if block:
            monkeypatch.setattr(fused_loss, "BLOCK_ELEMENTS", {"cpu": block * 24, "cuda": 24})
        terms = distillation_loss(
            rows, head, targets, given, Objective(method, 2.0, parameters=PARAMETERS[method], vocabulary=SHARED), chunk
        )
        found.append([*(one.detach() for one in terms), *torch.autograd.grad(terms.loss, [rows, head.weight])])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_completion_rows_predict_the_next_token():
    hidden = torch.arange(15.0).reshape(3, 5, 1)
    batch = collate([[1, 2], [1], [1, 2, 3, 4, 5]], [[7, 8], [5], []], 0)
    assert completions.take_rows(hidden, batch["positions"]).flatten().tolist() == [1, 2, 5]
    assert batch["targets"].tolist() == [7, 8, 5]


def test_products_into_float32_are_tried_before_they_are_used():
    """No kernel of the CPU has them, as no kernel of some GPUs."""
    assert not try_mixed_product(torch.device("cpu"), torch.bfloat16)
    total, left, right = torch.ones(3, 2), torch.randn(3, 5).bfloat16(), torch.randn(5, 2).bfloat16()
    add_product(total, left, right, 0.5)
    torch.testing.assert_close(total, 1 + 0.5 * (left @ right).float())
