"""The schema that this code was written for."""

from typing import Final

# The newest revision in infra/migrations/versions. Known without importing Alembic, which takes longer than a query.
# Revisions are numbers of four digits that grow, so that a release knows a newer schema from an older one.
SCHEMA_HEAD: Final = "0015"
