"""Keys of tenants, with scopes and an end."""

from alembic import op

revision = "0008"
down_revision = "0007"

STATEMENTS: tuple[str, ...] = (
    """
    ALTER TABLE api_keys
        ADD COLUMN tenant text,
        ADD COLUMN scopes text[] NOT NULL DEFAULT '{*}',
        ADD COLUMN expires_at timestamptz
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
