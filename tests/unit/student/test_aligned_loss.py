"""The loss across tokenizers: values and gradients, compared with an independent float64 formula."""

import math

import pytest
import torch
from divergence_formulas import FORMULAS, give_parameters

from distill.models.logits import LogitTransform
from distill.models.token_alignment import TokenGroups
from distill.student import fused_loss
from distill.student.cross_tokenizer import CrossTokenizerSignal
from distill.student.fused_loss import distillation_loss
from distill.student.loss import ExactTeacher, Objective, TopKTeacher

METHODS = list(FORMULAS)
# Token 0 has no group of its own, 1 ends a turn; 2 and more are common tokens or belong to one.
GROUPS = TokenGroups(student=[0, 1, 2, 3, 4, 5, 6, 2, 3, 6, 0], teacher=[3, 2, 0, 4, 6, 1, 5, 4, 3, 2, 3, 0, 6], size=7)
EXAMPLES = [
    {  # one-to-one; two tokens of the student, three of the teacher; three and one; one and two; the end of the turn
        "completion": [2, 3, 4, 7, 9, 5, 6, 1],
        "teacher_completion": [9, 8, 12, 3, 1, 4, 2, 5],
        "spans": [(0, 0), (1, 1), (3, 4), (6, 5), (7, 7)],
    },
    {  # first tokens of different groups, then two tokens and one, without an end of the turn
        "completion": [3, 8, 2, 10],
        "teacher_completion": [3, 10, 1],
        "spans": [(0, 0), (1, 1), (2, 2)],
    },
]
STUDENT_ROWS, TEACHER_ROWS = 12, 11


class FixedTeacher:
    """A signal that gives the same teacher for every micro-batch, if it is asked for the teacher's tokens."""

    is_sharded = False

    def __init__(self, teacher):
        self.teacher = teacher

    def __call__(self, examples, batch, device):
        assert [one["completion"] for one in examples] == [one["teacher_completion"] for one in examples]
        return self.teacher


def log_softmax(logits, count, tau):
    return (logits.double()[:, :count] / tau).log_softmax(-1)


def list_cuts(example):
    """Spans as (student's rows, teacher's rows), each a range."""
    ends = (len(example["completion"]), len(example["teacher_completion"]))
    for (s, t), (s_end, t_end) in zip(example["spans"], [*example["spans"][1:], ends], strict=True):
        yield range(s, s_end), range(t, t_end)


def events_of(logq, tokens, rows, groups, path):
    """Probabilities of the groups, and of the observed path, at the first of some rows; plain sums."""
    q = logq[rows[0]].exp()
    sums = [
        sum((q[v] for v, group in enumerate(groups) if group == one), q.new_zeros(())) for one in range(GROUPS.size)
    ]
    if path:
        observed = math.prod([logq[row].exp()[tokens[row]] for row in rows])
        sums[groups[tokens[rows[0]]]] = sums[groups[tokens[rows[0]]]] - observed
        sums.append(observed)
    return sums


def reference(student, teacher, method, tau, value, top_k=None):
    """The divergence over all spans in float64, from probabilities."""
    total, row, their_row = torch.zeros((), dtype=torch.float64), 0, 0
    for example in EXAMPLES:
        mine, theirs = example["completion"], example["teacher_completion"]
        logq = log_softmax(student, 11, tau)[row : row + len(mine)]
        logp = log_softmax(teacher, 13, tau)[their_row : their_row + len(theirs)]
        for s, t in list_cuts(example):
            if GROUPS.student[mine[s[0]]] != GROUPS.teacher[theirs[t[0]]]:
                continue
            path = len(s) > 1 or len(t) > 1
            kept = set(range(1, GROUPS.size))
            if top_k:
                top = [set(logp[at].topk(top_k).indices.tolist()) for at in t]
                path = path and all(theirs[at] in one for at, one in zip(t, top, strict=True))
                kept = {GROUPS.teacher[token] for token in top[0]} - {0}
            p = events_of(logp, theirs, t, GROUPS.teacher, path)
            q = events_of(logq, mine, s, GROUPS.student, path)
            if top_k:  # of each group, only the stored tokens count
                for token in set(range(13)) - top[0]:
                    group = GROUPS.teacher[token]
                    p[group] = p[group] - logp[t[0]].exp()[token]
                    p[0] = p[0] + logp[t[0]].exp()[token]
            pairs = [(sum(side[g] for g in range(GROUPS.size) if g not in kept) for side in (p, q))]
            pairs += [(p[group], q[group]) for group in sorted(kept)]
            pairs += [(p[-1], q[-1])] if path else []
            one, other = (torch.stack(side) for side in zip(*pairs, strict=True))
            total = total + FORMULAS[method](one, other, **give_parameters(method, value))
        row, their_row = row + len(mine), their_row + len(theirs)
    return total


def read_top(logits, k, tau):
    logp = log_softmax(logits, 13, tau)
    top = logp.topk(k)
    tail = logp.exp().scatter(1, top.indices, 0.0).sum(-1).log()
    return TopKTeacher(top.indices.int(), top.values.float(), tail.float())


def align(teacher, tau):
    signal = CrossTokenizerSignal(FixedTeacher(teacher), GROUPS, tau)
    return signal(EXAMPLES, {}, torch.device("cpu"))


@pytest.fixture
def problem():
    torch.manual_seed(5)
    rows = torch.randn(STUDENT_ROWS, 6, requires_grad=True)
    head, teacher_head = torch.nn.Linear(6, 14, bias=False), torch.nn.Linear(9, 16, bias=False)
    with torch.no_grad():
        head.weight.mul_(3), teacher_head.weight.mul_(3)
    targets = torch.tensor([token for example in EXAMPLES for token in example["completion"]])
    teacher = ExactTeacher(torch.randn(TEACHER_ROWS, 9), teacher_head.requires_grad_(False))
    return rows, head, targets, teacher


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 2, 6])
@pytest.mark.parametrize("method", METHODS)
def test_value_and_gradients_match_float64(problem, method, top_k, tau, chunk):
    rows, head, targets, teacher = problem
    logits = teacher.rows @ teacher.head.weight.T
    aligned = align(read_top(logits, top_k, tau) if top_k else teacher, tau)
    objective = Objective(method, tau, 0.3, give_parameters(method, 0.4), 11)
    found = distillation_loss(rows, head, targets, aligned, objective, chunk=chunk)
    gradients = torch.autograd.grad(found.loss, [rows, head.weight])

    leaves = [one.detach().double().requires_grad_() for one in (rows, head.weight)]
    student = leaves[0] @ leaves[1].T
    kd = reference(student, logits, method, tau, 0.4, top_k)
    loss = 0.3 * tau**2 * kd + 0.7 * torch.nn.functional.cross_entropy(student, targets, reduction="sum")
    assert found.kd.item() == pytest.approx(kd.item(), rel=1e-4, abs=1e-6)
    assert found.loss.item() == pytest.approx(loss.item(), rel=1e-4)
    for one, wanted in zip(gradients, torch.autograd.grad(loss, leaves), strict=True):
        torch.testing.assert_close(one.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_heads_with_lora_and_changed_logits_match_float64(problem, method, lora):
    rows, head, targets, teacher = problem
    if lora:
        from peft import LoraConfig, inject_adapter_in_model

        holder = torch.nn.ModuleDict({"lm_head": head})
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False), holder)
        head = holder["lm_head"]
    mine, theirs = LogitTransform(4.0, 3.0), LogitTransform(0.5, 2.0)
    logits = theirs.apply(teacher.rows @ teacher.head.weight.T)
    aligned = align(teacher._replace(transform=theirs), 2.0)
    weights = [one for one in head.parameters() if one.requires_grad]
    objective = Objective(method, 2.0, 0.3, give_parameters(method, 0.4), 11)
    found = distillation_loss(rows, head, targets, aligned, objective, chunk=4, transform=mine)
    gradients = torch.autograd.grad(found.loss, [rows, *weights])

    student = 3.0 * torch.tanh(head(rows).double() * 4.0 / 3.0)
    kd = reference(student, logits, method, 2.0, 0.4)
    loss = 0.3 * 2.0**2 * kd + 0.7 * torch.nn.functional.cross_entropy(student, targets, reduction="sum")
    assert found.kd.item() == pytest.approx(kd.item(), rel=1e-4, abs=1e-6)
    for one, wanted in zip(gradients, torch.autograd.grad(loss, [rows, *weights]), strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("block", [1, 2, 5])
def test_spans_are_cut_by_blocks_and_chunks(problem, monkeypatch, block):
    """The slope of a span's probability reaches its inner rows in later blocks and chunks."""
    rows, head, targets, teacher = problem
    aligned = align(teacher, 1.0)
    objective = Objective("forward_kl", 1.0, 1.0, vocabulary=11)
    whole = distillation_loss(rows, head, targets, aligned, objective)
    expected = torch.autograd.grad(whole.loss, [rows, head.weight])
    monkeypatch.setitem(fused_loss.BLOCK_ELEMENTS, "cpu", block * 14)
    found = distillation_loss(rows, head, targets, aligned, objective, chunk=4)
    assert found.kd.item() == pytest.approx(whole.kd.item(), rel=1e-5)
    for one, wanted in zip(torch.autograd.grad(found.loss, [rows, head.weight]), expected, strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [30.0, 1000.0])
@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("method", METHODS)
def test_extreme_logits_have_finite_gradients(problem, method, top_k, scale):
    rows, head, targets, teacher = problem
    teacher = teacher._replace(rows=teacher.rows * scale)
    given = read_top(teacher.rows @ teacher.head.weight.T, top_k, 1.0) if top_k else teacher
    objective = Objective(method, 1.0, 1.0, give_parameters(method, 0.4), 11)
    found = distillation_loss(rows * scale, head, targets, align(given, 1.0), objective)
    gradients = torch.autograd.grad(found.loss, [rows, head.weight])
    assert all(one.isfinite().all() for one in (*found, *gradients))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "engine"])
def test_a_student_that_agrees_has_no_loss_and_no_gradient(method):
    """The same vocabulary on both sides, in one-to-one spans and in a span of two tokens."""
    torch.manual_seed(0)
    example = {"completion": [2, 3, 4], "teacher_completion": [2, 3, 4], "spans": [(0, 0), (1, 1)]}
    groups = TokenGroups([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], 6)
    head, rows = torch.nn.Linear(4, 6), torch.randn(3, 4, requires_grad=True)
    signal = CrossTokenizerSignal(FixedTeacher(ExactTeacher(rows.detach(), head)), groups, 1.0)
    aligned = signal([example], {}, torch.device("cpu"))
    objective = Objective(method, 1.0, 1.0, give_parameters(method), 6)
    found = distillation_loss(rows, head, torch.tensor([2, 3, 4]), aligned, objective)
    assert found.kd.item() == pytest.approx(0.0, abs=1e-5)
    assert torch.autograd.grad(found.loss, rows)[0].abs().max() < 1e-4


def test_the_gradient_of_a_span_reaches_all_of_its_tokens(problem):
    """With the divergence alone, rows of spans that are not compared have no gradient, and all others have one."""
    rows, head, targets, teacher = problem
    found = distillation_loss(
        rows, head, targets, align(teacher, 1.0), Objective("forward_kl", 1.0, 1.0, vocabulary=11)
    )
    (gradient,) = torch.autograd.grad(found.loss, [rows])
    assert gradient.abs().sum(-1).gt(0).nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11]
