"""The rows of a batch, as the arrays that a statement takes, and as the table that it makes of them."""

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[object]]) -> list[Sequence[object]]:
    """The columns of `rows` for a statement that reads them by `table`. There is a row at least, and the values of the
    first column differ.

    A column whose values are all the same is sent once, and one of NULLs not at all. asyncpg asks of each value in an
    array whether it is one itself, which is most of what a row costs here, and most of an attempt's columns are the
    same in a batch: its outcome, its status, its dispatcher (10 of 209 µs of CPU for each delivery).
    """
    return [_shortened(column) for column in zip(*rows, strict=True)]


def _shortened(column: Sequence[object]) -> Sequence[object]:
    first = column[0]
    # The last one first: counting equal keys is slow where they are compared in Python, as UUIDs are.
    if first != column[-1] or column.count(first) != len(column):
        return column
    return () if first is None else (first,)


def table(columns: str, *, start: int = 1) -> str:
    """What a statement reads the rows of `columns` from: its parameters from `$start` on, as a table with these columns
    (`"id uuid, reason text"`). The first is as long as the table. Of the others, one of a single value has it in every
    row, and an empty one is NULL.
    """
    named = [column.split() for column in columns.split(",")]
    arrays = [f"${number}::{kind}[]" for number, (_, kind) in enumerate(named, start)]
    names = [name for name, _ in named]
    values = [
        f"CASE WHEN cardinality({array}) = 1 THEN ({array})[1] ELSE {name} END AS {name}"
        for name, array in zip(names[1:], arrays[1:], strict=True)
    ]
    given = f"unnest({', '.join(arrays)}) AS given ({', '.join(names)})"
    return f"(SELECT {', '.join((names[0], *values))} FROM {given})"  # noqa: S608
