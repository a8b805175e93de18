"""Keys of tenants, with scopes, an end and a rate limit; when each was used, and how much of its limit is."""

from alembic import op

revision = "0008"
down_revision = "0007"

STATEMENTS: tuple[str, ...] = (
    """
    ALTER TABLE api_keys
        ADD COLUMN tenant text,
        ADD COLUMN scopes text[] NOT NULL DEFAULT '{*}',
        ADD COLUMN expires_at timestamptz,
        ADD COLUMN rate_per_min integer,
        ADD COLUMN replaced_by uuid,
        ADD COLUMN uses bigint NOT NULL DEFAULT 0,
        ADD COLUMN last_used_at timestamptz,
        ADD CONSTRAINT rate CHECK (rate_per_min > 0)
    """,
    "CREATE INDEX api_keys_by_tenant ON api_keys (tenant, id)",
    # Unlogged: a crash of the database empties it, and every limit begins anew.
    """
    CREATE UNLOGGED TABLE api_key_windows (
        key_id uuid PRIMARY KEY,
        number bigint NOT NULL,
        taken integer NOT NULL,
        granted integer NOT NULL
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
