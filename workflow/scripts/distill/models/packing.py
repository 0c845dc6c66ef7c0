"""Packing of records into rows."""

from collections.abc import Sequence


def pack(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Pack records into rows by first-fit decreasing: longest first, each into the first row that has room for it.

    If only the records of some of these rows are packed again, in the order of the rows, the result is these rows.

    Args:
        lengths: tokens of each record.
        row_length: maximum number of tokens in a row; a longer record has a row of its own.

    Returns:
        The indices of the records in each row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        row = next((row for row, left in enumerate(room) if left >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(row_length)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows
