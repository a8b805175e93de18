"""The audit log."""

from alembic import op

revision = "0012"
down_revision = "0011"

STATEMENTS: tuple[str, ...] = (
    """
    CREATE TABLE audit_log (
        id uuid PRIMARY KEY,
        tenant text,
        key_id uuid NOT NULL,
        action text NOT NULL,
        target text NOT NULL,
        address text,
        request_id text NOT NULL,
        before jsonb,
        after jsonb,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
