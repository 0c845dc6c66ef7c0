"""The rules as text, for what Snakemake itself does not check."""

import re

from running import ROOT

RULES = "".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))


def find_rules():
    """Name to (own text, name of the rule that it specializes or None) of each rule."""
    heads = list(re.finditer(r"^(?:use rule (\w+) as |rule )(\w+)(?: with)?:$", RULES, flags=re.MULTILINE))
    ends = [*(head.start() for head in heads[1:]), len(RULES)]
    return {head[2]: (RULES[head.end() : end], head[1]) for head, end in zip(heads, ends, strict=True)}


def find_directive(name, directive):
    """Text of a rule's directive, its own or else that of the rule that it specializes; None without one."""
    text, base = find_rules()[name]
    if match := re.search(rf"^    {directive}:(.*\n(?:     .*\n)*)", text, flags=re.MULTILINE):
        return match[1]
    return find_directive(base, directive) if base else None
