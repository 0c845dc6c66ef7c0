"""Prefix sharing, compared with every possible grouping of a few prompts."""

import random

import pytest

from distill.generation.prefixes import LEAST_SHARED, count_shared, group_by_prefix


def saved(prompts, groups):
    return sum((len(group.members) - 1) * group.length for group in groups)


def partitions(items):
    """Yield every partition of items into groups."""
    if not items:
        yield []
        return
    first, *rest = items
    for groups in partitions(rest):
        yield [[first], *groups]
        for number, group in enumerate(groups):
            yield [*groups[:number], [first, *group], *groups[number + 1 :]]


def best_saving(prompts):
    """Return the most tokens that any grouping saves."""

    def value(group):
        shared = min((count_shared(prompts[group[0]], prompts[other]) for other in group[1:]), default=0)
        return shared * (len(group) - 1) if shared >= LEAST_SHARED else 0

    return max(sum(map(value, groups)) for groups in partitions(range(len(prompts))))


def check(prompts, groups):
    assert sorted(index for group in groups for index in group.members) == list(range(len(prompts)))
    for group in groups:
        members = [prompts[index] for index in group.members]
        assert all(prompt[: group.length] == members[0][: group.length] for prompt in members)
        assert all(len(prompt) > group.length for prompt in members)
        assert [len(prompt) for prompt in members] == sorted(map(len, members), reverse=True)


def draw(*lengths):
    return [random.randrange(5) for _ in range(random.choice(lengths))]


@pytest.mark.parametrize("seed", range(20))
def test_prompts_with_one_beginning_each_are_grouped_as_well_as_can_be(seed):
    random.seed(seed)
    system = draw(0, 20)
    blocks = [[number, *system, *draw(10, 35, 50)] for number in range(3)]
    prompts = [random.choice(blocks) + [5 + number, *draw(0, 1, 20)] for number in range(7)]
    groups = group_by_prefix(prompts)
    check(prompts, groups)
    assert saved(prompts, groups) == best_saving(prompts)


@pytest.mark.parametrize("seed", range(20))
def test_beginnings_inside_beginnings_save_nearly_the_most(seed):
    random.seed(seed)
    roots = [draw(0, 40, 60) for _ in range(2)]
    branches = [random.choice(roots) + draw(1, 35, 50) for _ in range(3)]
    prompts = [random.choice(branches) + draw(0, 1, 20) for _ in range(7)]
    groups = group_by_prefix(prompts)
    check(prompts, groups)
    assert saved(prompts, groups) >= 0.75 * best_saving(prompts)


def test_identical_prompts_leave_one_token_behind_their_beginning():
    (group,) = group_by_prefix([list(range(50))] * 3)
    assert (group.length, sorted(group.members)) == (49, [0, 1, 2])


def test_strangers_stay_together_longest_first():
    (group,) = group_by_prefix([[1, 2], [3, 4, 5], [6]])
    assert (group.length, group.members) == (0, [1, 0, 2])
    assert group_by_prefix([]) == []
