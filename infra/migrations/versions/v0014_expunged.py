"""What is expunged of an event; and when a delivery was begun again.

Only adds. The release before this one knows nothing of expunging: upgrade every process before the first event is.
"""

from alembic import op

revision = "0014"
down_revision = "0013"

STATEMENTS: tuple[str, ...] = (
    "ALTER TABLE events ADD COLUMN expunged_at timestamptz",
    "ALTER TABLE deliveries ADD COLUMN cycle_began_at timestamptz",
    """
    CREATE INDEX dead_letters_of_event ON dead_letters (event_id)
        WHERE event_id IS NOT NULL AND kind <> 'delivery'
    """,
    "CREATE INDEX dead_letters_by_tenant ON dead_letters (tenant, id)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
