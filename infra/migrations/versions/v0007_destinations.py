"""How an endpoint is written to: format, signature, authentication, TLS, handshake; and headers that an event brings.

Only adds: the release before this one goes on working, and sends as it always did, until a subscription says what only
this one understands (signature, format, auth, tls, a header that is no secret). So upgrade the fleet first.
"""

from alembic import op

revision = "0007"
down_revision = "0006"

STATEMENTS = (
    """
    ALTER TABLE subscriptions
        ADD COLUMN format text NOT NULL DEFAULT 'standard',
        ADD COLUMN signature jsonb NOT NULL DEFAULT '{"scheme": "standard", "versions": ["v1"]}',
        ADD COLUMN auth bytea,
        ADD COLUMN tls bytea,
        ADD COLUMN handshake boolean NOT NULL DEFAULT false,
        ADD COLUMN validated_at timestamptz,
        ADD COLUMN allowed_per_min integer
    """,
    "ALTER TABLE events ADD COLUMN headers jsonb",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
