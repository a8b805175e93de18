"""Every column that is encrypted is encrypted anew when the keys rotate."""

from sqlalchemy import LargeBinary

from infra.store.encryption import COLUMNS
from infra.store.tables import metadata

# Bytes that are no secret, or no reversible one.
PLAIN = {
    ("api_keys", "sha256"),
    ("event_keys", "digest"),
    ("events", "data"),
    ("event_types", "example"),
    ("event_type_versions", "schema"),
    ("attempts", "response_body"),
    ("dead_letters", "body"),
    ("queue_messages", "body"),
    ("idempotency_keys", "digest"),
}
# Encrypted, and gone by itself within a day: until then it wants the key that it was encrypted with.
SHORT_LIVED = {("idempotency_keys", "answer")}


def test_no_column_of_bytes_is_left_out() -> None:
    there = {
        (table.name, column.name)
        for table in metadata.sorted_tables
        for column in table.columns
        if isinstance(column.type, LargeBinary)
    }
    assert there - PLAIN - SHORT_LIVED == {("subscriptions", name) for name in COLUMNS}
