"""What is sent of a batch, and what the statement makes of it."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.store.columns import columns, table
from infra.store.store import Store

Row = tuple[int, str | None, int | None, bytes | None, bool]

BATCHES = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.none() | st.sampled_from(["delivered", "retrying"]),
        st.none() | st.integers(0, 1),
        st.none() | st.just(b"") | st.just(b"ok"),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda row: row[0],
)
TYPES = "id int, status text, number int, body bytea, claimed bool"
READ = f"SELECT new.* FROM {table(TYPES, start=2)} AS new WHERE $1::text = ''"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BATCHES)
async def test_a_statement_reads_the_rows_of_a_batch(store: Store, batch: list[Row]) -> None:
    async with store.connection() as conn:
        records = await conn.fetch(READ, "", *columns(batch))
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
    assert columns(list(zip(range(3), column, strict=True)))[1] == sent
