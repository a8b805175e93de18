"""Operational events: what Hookhare tells of itself, on the same bus as all other events, under types of its own."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from schemas.ids import DEAD_LETTER, DELIVERY, EVENT, SUBSCRIPTION, public_id

OPERATIONAL_SOURCE: Final = "hookhare"


class OperationalType(StrEnum):
    """What there is to be told. A subscription's events have it as their subject."""

    CREATED = "hookhare.subscription.created"
    UPDATED = "hookhare.subscription.updated"  # also paused, enabled again, or with a new secret
    DISABLED = "hookhare.subscription.disabled"  # by an operator, by 410 Gone, or because every attempt failed
    DELETED = "hookhare.subscription.deleted"
    FAILING = "hookhare.subscription.failing"  # once for each streak
    RECOVERED = "hookhare.subscription.recovered"  # the first success after that was told
    DEAD = "hookhare.delivery.dead"  # once for each dead letter of an ordinary event


_KEYS: Final = {
    "subscription_id": SUBSCRIPTION,
    "delivery_id": DELIVERY,
    "event_id": EVENT,
    "dead_letter_id": DEAD_LETTER,
}


def public_data(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The data of an operational event as it is sent: with public ids in place of the keys of rows."""
    return {name: public_id(_KEYS[name], UUID(value)) if name in _KEYS else value for name, value in stored.items()}
