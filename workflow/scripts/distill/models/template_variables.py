"""The variables that a chat template reads, found without rendering it. Imports no transformers."""

import re
from collections.abc import Iterable
from typing import Any

from jinja2 import Environment, TemplateError, TemplateSyntaxError, meta

CHANNEL = "<|channel|>"  # writes the reasoning and the answer of gpt-oss apart
# transformers' own tag, which marks the text that an assistant generates.
GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


def parse(template: str) -> Any:
    """Parse a chat template."""
    return Environment(extensions=["jinja2.ext.loopcontrols"]).parse(GENERATION.sub("", template))


def find_syntax_error(template: str) -> str | None:
    """Return what is wrong with the syntax of a chat template, with its line; None if it is valid."""
    try:
        parse(template)
    except TemplateSyntaxError as error:
        return f"{error.message} (line {error.lineno})"
    return None


def find_unknown_variables(template: Any, names: Iterable[str]) -> list[str]:
    """Return the names that a chat template does not read as variables.

    Args:
        template: text of the template, or texts by name.
        names: names to look for. If the template is not valid Jinja, one that occurs anywhere in it counts as read.
    """
    names = list(names)
    texts = list(template.values()) if isinstance(template, dict) else [str(template)]
    read: set[str] = set()
    for text in texts if names else ():
        try:
            read |= meta.find_undeclared_variables(parse(text))
        except TemplateError:
            read |= {name for name in names if name in text}
    return [name for name in names if name not in read]
