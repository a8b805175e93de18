"""What lists, dead letters and replays keep besides.

Only adds: the release before this one goes on working, and what it replays is tied to no replay.
"""

from alembic import op

revision = "0011"
down_revision = "0010"

STATEMENTS: tuple[str, ...] = (
    "ALTER TABLE dead_letters ADD COLUMN discard_reason text",
    "ALTER TABLE deliveries ADD COLUMN replay_id uuid",
    "CREATE INDEX deliveries_of_replay ON deliveries (replay_id, id) WHERE replay_id IS NOT NULL",
    "CREATE INDEX deliveries_of_replay_by_status ON deliveries (replay_id, status) WHERE replay_id IS NOT NULL",
    "CREATE INDEX deliveries_given_up ON deliveries (status, id) WHERE status IN ('dead', 'canceled')",
    """
    CREATE INDEX deliveries_given_up_of ON deliveries (subscription_id, status, id)
        WHERE status IN ('dead', 'canceled')
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
