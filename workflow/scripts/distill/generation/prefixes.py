"""Which prompts share how long a beginning, so that a model reads it once for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

LEAST_SHARED = 32  # tokens; a shorter beginning is not worth a pass of its own


@dataclass
class Group:
    """Prompts, by their indices, that share their first `length` tokens; 0 where they share too few."""

    length: int
    members: list[int]


@dataclass
class Branch:
    """A run of sorted prompts, start to end; the groups in it, and the tokens that they save."""

    start: int
    end: int
    saved: int
    groups: list[tuple[int, list[int]]]  # (shared tokens, places in sorted order)


@dataclass
class Node:
    """A point of the trie: what passes it shares `length` tokens."""

    length: int
    branches: list[Branch] = field(default_factory=list)

    def close(self) -> Branch:
        """A grouping of all that passes here: some branches group on their own, the others share this point."""
        here: list[Branch] = []
        rest: list[Branch] = []
        for branch in self.branches:
            is_here = self.length >= LEAST_SHARED and (branch.end - branch.start) * self.length > branch.saved
            (here if is_here else rest).append(branch)
        members = [place for branch in here for place in range(branch.start, branch.end)]
        shared = max(len(members) - 1, 0) * self.length
        if shared < sum(branch.saved for branch in here):
            rest, members, shared = self.branches, [], 0
        groups = [group for branch in rest for group in branch.groups] + ([(self.length, members)] if members else [])
        saved = shared + sum(branch.saved for branch in rest)
        return Branch(self.branches[0].start, self.branches[-1].end, saved, groups)


def count_shared(one: list[int], other: list[int]) -> int:
    """Tokens that two prompts have in common from the start, short of the last one of either."""
    longest = min(len(one), len(other)) - 1
    return next((i for i in range(longest) if one[i] != other[i]), max(longest, 0))


def group_by_prefix(prompts: Sequence[list[int]]) -> list[Group]:
    """Groups that spare a model many tokens, when each group's shared beginning is read once.

    Where beginnings lie inside longer ones, each branch is decided on its own, which is not always the very best. At
    least one token of each prompt lies behind its group's beginning. Groups with the longest prompts come first, and
    the longest prompts first in each.
    """
    order = sorted(range(len(prompts)), key=lambda index: prompts[index])
    groups, alone = [], []
    for length, places in find_groups([prompts[index] for index in order]):
        members = [order[place] for place in places]
        if len(members) > 1:
            groups.append(Group(length, members))
        else:
            alone += members
    if alone:
        groups.append(Group(0, alone))
    for group in groups:
        group.members.sort(key=lambda index: (-len(prompts[index]), index))
    return sorted(groups, key=lambda group: (-len(prompts[group.members[0]]), group.members[0]))


def find_groups(prompts: Sequence[list[int]]) -> list[tuple[int, list[int]]]:
    """(shared tokens, places) of groups of sorted prompts; the trie is walked from left to right."""
    stack = [Node(0)]
    for place in range(len(prompts)):
        branch = Branch(place, place + 1, 0, [(0, [place])])
        shared = count_shared(prompts[place], prompts[place + 1]) if place + 1 < len(prompts) else 0
        while stack[-1].length > shared:
            stack[-1].branches.append(branch)
            branch = stack.pop().close()
        if stack[-1].length < shared:
            stack.append(Node(shared))
        stack[-1].branches.append(branch)
    return stack[0].close().groups if prompts else []
