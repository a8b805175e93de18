"""The schema, as Alembic revisions in `versions/`.

They are run by `infra.store.migrate`, which has Alembic write the SQL (its offline mode) and executes that
over asyncpg, so that no second driver is needed. So a revision is made of statements that do not look into the
database first, and all of them run in one transaction.

Expand before contract: a revision adds what the next release needs; what the previous release still
reads goes one release later.
"""
