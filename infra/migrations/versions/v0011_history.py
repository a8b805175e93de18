"""What lists, dead letters and replays keep besides."""

from alembic import op

revision = "0011"
down_revision = "0010"

STATEMENTS: tuple[str, ...] = ("ALTER TABLE dead_letters ADD COLUMN discard_reason text",)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
