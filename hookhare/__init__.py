"""Hookhare delivers events as signed webhooks: retried, dead-lettered, replayable, and nothing lost.

What a domain service imports stands here, and is loaded when it is first used:

    from hookhare import EventPublisher

    async with EventPublisher("amqp://localhost", source="shop") as events:
        await events.publish("order.created", {"order": 4711})

and what a receiver of webhooks needs: `verify_webhook`. The command is `hookhare --help`.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hookhare.webhook import verify_webhook
    from producer.events import FailedEvent, NewEvent, NotAllPublished, PublishedEvent, RawJSON
    from producer.publisher import EventPublisher
    from schemas.errors import (
        BrokerError,
        BrokerUnavailable,
        ConfigurationError,
        HookhareError,
        InvalidInput,
        InvalidSignature,
        PublishRefused,
        PublishTimeout,
        Unroutable,
    )

    __version__: str

_HOMES = {
    "EventPublisher": "producer.publisher",
    "NewEvent": "producer.events",
    "RawJSON": "producer.events",
    "PublishedEvent": "producer.events",
    "FailedEvent": "producer.events",
    "NotAllPublished": "producer.events",
    "verify_webhook": "hookhare.webhook",
    "HookhareError": "schemas.errors",
    "InvalidInput": "schemas.errors",
    "InvalidSignature": "schemas.errors",
    "ConfigurationError": "schemas.errors",
    "BrokerError": "schemas.errors",
    "BrokerUnavailable": "schemas.errors",
    "PublishRefused": "schemas.errors",
    "PublishTimeout": "schemas.errors",
    "Unroutable": "schemas.errors",
}

__all__ = [
    "BrokerError",
    "BrokerUnavailable",
    "ConfigurationError",
    "EventPublisher",
    "FailedEvent",
    "HookhareError",
    "InvalidInput",
    "InvalidSignature",
    "NewEvent",
    "NotAllPublished",
    "PublishRefused",
    "PublishTimeout",
    "PublishedEvent",
    "RawJSON",
    "Unroutable",
    "__version__",
    "verify_webhook",
]


def __getattr__(name: str) -> object:
    """Load a name on first use (PEP 562), so that `import hookhare` costs nothing and needs no broker client."""
    if name == "__version__":
        try:
            value: object = version("hookhare")
        except PackageNotFoundError:  # a source tree that was never installed
            value = "0+unknown"
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'hookhare' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
