"""The schema that this code was written for."""

from typing import Final

# The newest revision in infra/migrations/versions. Known without importing Alembic, which takes longer than a query.
SCHEMA_HEAD: Final = "0002"
