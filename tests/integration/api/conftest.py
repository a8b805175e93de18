"""An API over a real database, whose broker that database is unless a test asks for RabbitMQ."""

from collections.abc import AsyncIterator

import pytest

from infra.settings import Settings
from infra.store.store import Store
from tests.support.api import ApiClient, api_settings, running_api


@pytest.fixture
def settings(database_url: str) -> Settings:
    return api_settings(database_url)


@pytest.fixture
async def api(settings: Settings, store: Store) -> AsyncIterator[ApiClient]:
    async with running_api(settings, store) as client:
        yield client


@pytest.fixture
async def strict_api(database_url: str, store: Store) -> AsyncIterator[ApiClient]:
    """One whose operator allows http:// and every port, and no network that is not public."""
    async with running_api(api_settings(database_url, egress_allow=""), store) as client:
        yield client
