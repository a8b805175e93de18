"""Streaks of failures, and operational events. Only adds: the release before this one goes on working."""

from alembic import op

revision = "0004"
down_revision = "0003"

STATEMENTS = (
    """
    ALTER TABLE subscriptions
        ADD COLUMN failing_since timestamptz,
        ADD COLUMN failures bigint NOT NULL DEFAULT 0,
        ADD COLUMN failing_told boolean NOT NULL DEFAULT false,
        ADD COLUMN operational boolean NOT NULL DEFAULT false
    """,
    # Who asked for these types before there were any gets them now.
    """
    UPDATE subscriptions SET operational = true
    WHERE EXISTS (SELECT 1 FROM unnest(event_types) AS pattern WHERE split_part(pattern, '.', 1) = 'hookhare')
    """,
    "CREATE INDEX subscriptions_failing ON subscriptions (id) WHERE failing_since IS NOT NULL",
    "CREATE INDEX subscriptions_operational ON subscriptions (tenant) WHERE operational",
    """
    CREATE TABLE operational_events (
        id uuid PRIMARY KEY,
        tenant text NOT NULL,
        type text NOT NULL,
        data jsonb NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
