"""Filters of subscriptions.

Only adds: the release before this one goes on working, and sends every event of a subscription's types until its last
dispatcher is gone, whatever its filter says. So upgrade the fleet first, and set filters then.
"""

from alembic import op

revision = "0010"
down_revision = "0009"

STATEMENTS: tuple[str, ...] = ("ALTER TABLE subscriptions ADD COLUMN filter jsonb",)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
