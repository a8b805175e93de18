"""The rate of a replay. Only adds: the release before this one goes on working, at its own speed."""

from alembic import op

revision = "0006"
down_revision = "0005"

STATEMENTS = (
    """
    ALTER TABLE replays
        ADD COLUMN max_per_s double precision NOT NULL DEFAULT 100,
        ADD COLUMN paced_since timestamptz NOT NULL DEFAULT clock_timestamp()
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
