"""The catalogue of event types."""

from alembic import op

revision = "0013"
down_revision = "0012"

STATEMENTS: tuple[str, ...] = (
    """
    CREATE TABLE event_types (
        id uuid PRIMARY KEY,
        name text NOT NULL,
        description text NOT NULL DEFAULT '',
        example bytea,
        deprecated_at timestamptz,
        deprecation text,
        newest integer,
        version bigint NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        deleted_at timestamptz
    )
    """,
    "CREATE UNIQUE INDEX event_types_by_name ON event_types (name) WHERE deleted_at IS NULL",
    "CREATE INDEX event_types_by_version ON event_types (version)",
    """
    CREATE TABLE event_type_versions (
        id uuid PRIMARY KEY,
        event_type_id uuid NOT NULL,
        number integer NOT NULL,
        schema bytea NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        CONSTRAINT event_type_versions_by_number UNIQUE (event_type_id, number)
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
