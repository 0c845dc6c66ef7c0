"""Tables as aligned text for a terminal."""

from collections.abc import Sequence


def render_columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table with a head; columns without any text are left out, empty cells get a dash."""
    shown = [column for column, texts in enumerate(zip(*rows, strict=True)) if any(texts)]
    table = [[head[column] for column in shown], *([row[column] or "–" for column in shown] for row in rows)]
    widths = [max(map(len, texts)) + 2 for texts in zip(*table, strict=True)]
    return ["".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table]
