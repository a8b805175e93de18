"""What the tests of subscriptions begin with: the least input there is, and what is wrong with more."""

from datetime import UTC, datetime
from typing import Any

import pytest

from schemas.errors import InvalidInput
from schemas.inputs import read_input
from schemas.signatures import format_secret
from schemas.subscriptions import (
    SubscriptionCreate,
)

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
SECRET = format_secret(bytes(range(32)))
LEAST: dict[str, Any] = {"url": "https://example.com/hook", "event_types": ["order.*"]}
EXPONENTIAL: dict[str, Any] = {"max_attempts": 5, "initial_delay_s": 1, "multiplier": 2.5, "max_delay_s": 60}


def create(**fields: object) -> SubscriptionCreate:
    return read_input(SubscriptionCreate, LEAST | fields)


def problems(**fields: object) -> dict[str, str]:
    """What is wrong with a subscription of these fields, by field."""
    with pytest.raises(InvalidInput) as caught:
        create(**fields)
    return {problem.field: problem.message for problem in caught.value.problems}
