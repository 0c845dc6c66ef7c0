"""Prefix sharing: which prompts share how long a prefix, so that the model prefills it once for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

LEAST_SHARED = 32  # tokens; a shorter prefix is not worth a prefill of its own


@dataclass
class Group:
    """Prompts that share a prefix.

    Attributes:
        length: number of shared tokens; 0 if the prompts share too few.
        members: indices of the prompts.
    """

    length: int
    members: list[int]


@dataclass
class Branch:
    """A range of the sorted prompts.

    Attributes:
        start, end: the range, as places in the sorted order.
        saved: tokens that grouping saves.
        groups: (shared tokens, places in the sorted order) of each group.
    """

    start: int
    end: int
    saved: int
    groups: list[tuple[int, list[int]]]


@dataclass
class Node:
    """A node of the trie: all prompts below it share their first `length` tokens."""

    length: int
    branches: list[Branch] = field(default_factory=list)

    def close(self) -> Branch:
        """Group the prompts below this node: each branch keeps its own groups or joins the group of this node."""
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
    """Return the length of two prompts' common prefix, without the last token of either."""
    longest = min(len(one), len(other)) - 1
    return next((i for i in range(longest) if one[i] != other[i]), max(longest, 0))


def group_by_prefix(prompts: Sequence[list[int]]) -> list[Group]:
    """Group prompts so that prefilling each group's prefix once saves many tokens.

    Nested prefixes are decided branch by branch, so the grouping is not always optimal. The prefix never includes a
    prompt's last token.

    Args:
        prompts: token ids of each prompt.

    Returns:
        Groups, those with the longest prompts first; members of a group are sorted by length, longest first.
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
    """Return (shared tokens, places) of each group of sorted prompts, by walking their trie from left to right."""
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
