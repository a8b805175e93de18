"""Loaded by Alembic for each command: writes the SQL of the revisions asked for into the caller's buffer."""

from alembic import context

context.configure(
    dialect_name="postgresql",
    # The caller opens the transaction: it holds the advisory lock, and adds partitions before it commits.
    transactional_ddl=False,
)
context.run_migrations()
