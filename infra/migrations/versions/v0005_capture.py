"""What an attempt's answer said in its headers, and where its time went. Only adds: the release before goes on working.

Nothing is rewritten: a column that may be null and has no default is a change of the catalog alone, in every partition.
"""

from alembic import op

revision = "0005"
down_revision = "0004"

STATEMENTS = (
    """
    ALTER TABLE attempts
        ADD COLUMN response_headers jsonb,
        ADD COLUMN dns_ms integer,
        ADD COLUMN connect_ms integer,
        ADD COLUMN tls_ms integer,
        ADD COLUMN first_byte_ms integer
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
