"""Rate limits and breakers of subscriptions. Only adds: the release before this one goes on working."""

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS = (
    """
    ALTER TABLE subscriptions
        ADD COLUMN rate_per_s double precision,
        ADD COLUMN rate_burst integer,
        ADD COLUMN paced_until timestamptz,
        ADD COLUMN breaker_until timestamptz,
        ADD COLUMN breaker_times integer NOT NULL DEFAULT 0,
        ADD CONSTRAINT rate
            CHECK ((rate_per_s > 0 AND rate_burst > 0) OR (rate_per_s IS NULL AND rate_burst IS NULL))
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
