"""Rows as the arrays that `unnest` takes."""

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[object]]) -> list[Sequence[object]]:
    """The columns of `rows`, of which there is at least one. Of one without a value nothing is sent: `unnest` fills it
    up with NULLs, as long as another is full. asyncpg asks of each value in an array whether it is one itself, of each
    NULL too, which is most of what a row costs here.
    """
    return [() if column.count(None) == len(column) else column for column in zip(*rows, strict=True)]
