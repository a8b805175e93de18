"""What is sent of a batch, and what the statement makes of it."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.store.arrays import arrays, table
from infra.store.store import Store

NOW = datetime(2026, 1, 31, 12, 0, 0, 250_000, tzinfo=UTC)
VALUES: dict[str, list[Any]] = {
    "text": ["delivered", "retrying", ""],
    "int": [0, 1],
    "smallint": [200, 500],
    "float8": [0.0, 0.25],
    "bool": [False, True],
    "bytea": [b"", b"ok"],
    "uuid": [UUID(int=1), UUID(int=2)],
    "timestamptz": [NOW, NOW.replace(year=2027)],
    "jsonb": [{}, {"retry-after": "1"}],
}
BATCHES = st.lists(
    st.tuples(st.integers(0, 9), *(st.sampled_from([None, *some]) for some in VALUES.values())),
    min_size=1,
    max_size=4,
    unique_by=lambda row: row[0],
)
COLUMNS = ", ".join(["id int", *(f"of_{kind} {kind}" for kind in VALUES)])
READ = f"SELECT new.* FROM {table(COLUMNS, start=2)} AS new WHERE $1::text = ''"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BATCHES)
async def test_a_statement_reads_the_rows_of_a_batch(store: Store, batch: list[tuple[Any, ...]]) -> None:
    async with store.connection() as conn:
        records = await conn.fetch(READ, "", *arrays(batch))
    assert [tuple(record) for record in records] == batch


@pytest.mark.parametrize(
    ("column", "sent"),
    [
        (["a", "a", "a"], ("a",)),
        ([None, None, None], ()),
        (["a", None, "a"], ("a", None, "a")),
        (["a", "b", "a"], ("a", "b", "a")),
        ([None, "a", "a"], (None, "a", "a")),
    ],
)
def test_what_is_the_same_in_every_row_is_sent_once(column: list[str | None], sent: tuple[str | None, ...]) -> None:
    assert arrays([(7, value) for value in column]) == [(7, 7, 7), sent]
