"""What was asked under an Idempotency-Key, and what was answered."""

from alembic import op

revision = "0009"
down_revision = "0008"

STATEMENTS: tuple[str, ...] = (
    """
    CREATE TABLE idempotency_keys (
        api_key_id uuid NOT NULL,
        route text NOT NULL,
        key text NOT NULL,
        seed uuid NOT NULL,
        claim uuid NOT NULL,
        digest bytea NOT NULL,
        claimed_at timestamptz,
        answer bytea,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (api_key_id, route, key)
    )
    """,
    "CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
