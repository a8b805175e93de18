"""The rows of a batch as a statement takes them: an array for each column; and what it makes of them: a table again."""

from collections.abc import Sequence


def arrays(rows: Sequence[Sequence[object]]) -> list[Sequence[object]]:
    """The columns of `rows`, at least one, for a statement that reads them by `table` and by nothing else.

    The first is whole. Of the others, one whose values are all the same is sent once, and one of NULLs not at all.
    asyncpg asks of each value in an array whether it is one itself, which is most of what a row costs here, and most of
    an attempt's columns are the same in a batch: its outcome, its status, its dispatcher (10 of 209 µs of CPU for each
    delivery).
    """
    first, *others = zip(*rows, strict=True)
    return [first, *map(_shortened, others)]


def _shortened(column: Sequence[object]) -> Sequence[object]:
    first = column[0]
    # The last one first: counting equal keys is slow where they are compared in Python, as UUIDs are.
    if first != column[-1] or column.count(first) != len(column):
        return column
    return () if first is None else (first,)


def table(columns: str, *, start: int = 1) -> str:
    """What a statement reads `arrays` from: its parameters from `$start` on, as a table with these columns (`"id uuid,
    reason text"`). The first is as long as the table. Of the others, one of a single value has it in every row, and an
    empty one is NULL.
    """
    named = [column.split() for column in columns.split(",")]
    given = [f"${number}::{kind}[]" for number, (_, kind) in enumerate(named, start)]
    names = [name for name, _ in named]
    values = [
        f"CASE WHEN cardinality({array}) = 1 THEN ({array})[1] ELSE {name} END AS {name}"
        for name, array in zip(names[1:], given[1:], strict=True)
    ]
    unnested = f"unnest({', '.join(given)}) AS given ({', '.join(names)})"
    return f"(SELECT {', '.join((names[0], *values))} FROM {unnested})"  # noqa: S608
