"""A PostgreSQL broker for the tests of this folder."""

from collections.abc import AsyncIterator

import pytest

from infra.broker.postgres import PostgresBroker
from tests.integration.postgres.broker_steps import opened


@pytest.fixture
async def broker(database_url: str) -> AsyncIterator[PostgresBroker]:
    async with opened(database_url) as one:
        yield one
