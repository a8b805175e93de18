"""What Hookhare sends, for the document's `webhooks`: an event in each of its forms, and its own events.

Another signature (hmac) or none of the optional parts changes headers only; README has them all.
"""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from consumer_api.openapi_schemas import Schemas
from consumer_api.views import DeadLetterId, DeliveryId, EventId, EventType, JsonData, SubscriptionId
from schemas.operational import OperationalType
from schemas.signatures import ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from schemas.subscriptions import State


class StandardWebhook(TypedDict):
    """An event as Standard Webhooks has it. `timestamp` is the event's time; `data` the bytes that were published."""

    type: EventType
    timestamp: datetime
    data: JsonData


class CloudEvent(TypedDict):
    """An event in the structured mode of CloudEvents 1.0."""

    specversion: Literal["1.0"]
    id: str
    source: Annotated[str, Field(examples=["shop"])]
    type: EventType
    time: datetime
    subject: NotRequired[str]
    datacontenttype: Literal["application/json"]
    data: JsonData


class SubscriptionTold(TypedDict):
    """A subscription as it is when something is told of it. `url` is without its query."""

    subscription_id: SubscriptionId
    url: Annotated[str, Field(examples=["https://shop.example/webhooks"])]
    event_types: list[str]
    state: State
    reason: str | None
    failures: int
    failing_since: datetime | None


class DeathTold(TypedDict):
    """A delivery that was given up on."""

    dead_letter_id: DeadLetterId
    delivery_id: DeliveryId
    cycle: int
    subscription_id: SubscriptionId
    event_id: EventId
    event_type: EventType
    reason: str
    attempts: int


class SubscriptionWebhook(TypedDict):
    """An operational event about a subscription."""

    type: str
    timestamp: datetime
    data: SubscriptionTold


class DeathWebhook(TypedDict):
    """An operational event about a delivery."""

    type: str
    timestamp: datetime
    data: DeathTold


WEBHOOK_TYPES: Final = (StandardWebhook, CloudEvent, SubscriptionWebhook, DeathWebhook)

_TOLD: Final = {
    OperationalType.CREATED: "A subscription was created.",
    OperationalType.UPDATED: "A subscription was changed: also paused, enabled again, or given a new secret.",
    OperationalType.DISABLED: "A subscription was disabled: by an operator, by 410, or as every attempt failed.",
    OperationalType.DELETED: "A subscription was deleted.",
    OperationalType.FAILING: "An endpoint fails again and again; told once for each streak.",
    OperationalType.RECOVERED: "The first success after that was told.",
    OperationalType.DEAD: "A delivery of an ordinary event was given up on.",
}
_ID_TEXT: Final = "The event's id, the same in every attempt: by it, what comes twice is told."
_TIME_TEXT: Final = "Seconds since the epoch, of this attempt."
_SIGNATURE_TEXT: Final = (
    "`v1,…` (HMAC-SHA256) or `v1a,…` (Ed25519) over `{webhook-id}.{webhook-timestamp}.{body}`, in base64; several, "
    "joined by spaces, while a secret is rotated."
)
_ANSWERS: Final = {
    "2XX": {"description": "It is delivered."},
    "410": {"description": "It is given up on, and the subscription is disabled."},
    "default": {
        "description": "It is tried again by the subscription's policy. `Retry-After` of 429, 502, 503 and 504 is "
        "honoured. A redirect is not followed."
    },
}


def webhooks(schemas: Schemas) -> dict[str, Any]:
    """The `webhooks` section."""
    standard = schemas.of(StandardWebhook, "serialization")
    sent = {
        "event": _sent("An event, as Standard Webhooks has it.", "application/json", standard, schemas),
        "event_cloudevents_structured": _sent(
            "An event, as CloudEvents 1.0 in structured mode.",
            "application/cloudevents+json",
            schemas.of(CloudEvent, "serialization"),
            schemas,
        ),
        "event_cloudevents_binary": _sent(
            "An event, as CloudEvents 1.0 in binary mode: the body is its data, the headers are its attributes.",
            "application/json",
            {"description": "The event's data.", "examples": [{"total": "1.10"}]},
            schemas,
            _attributes(),
        ),
    }
    for kind, text in _TOLD.items():
        shape = DeathWebhook if kind is OperationalType.DEAD else SubscriptionWebhook
        schema = {
            "allOf": [schemas.of(shape, "serialization"), {"properties": {"type": {"const": kind.value}}}],
            "examples": [schemas.example(schemas.of(shape, "serialization")) | {"type": kind.value}],
        }
        sent[kind.value] = _sent(text, "application/json", schema, schemas)
    return sent


def _sent(
    text: str, media: str, schema: dict[str, Any], schemas: Schemas, more: tuple[dict[str, Any], ...] = ()
) -> dict[str, Any]:
    content = {media: {"schema": schema, "example": schemas.example(schema)}}
    return {
        "post": {
            "summary": text.rstrip("."),
            "description": text,
            "tags": ["sent"],
            "security": [],
            "parameters": [
                _header(ID_HEADER, _ID_TEXT, {"type": "string"}),
                _header(TIMESTAMP_HEADER, _TIME_TEXT, {"type": "integer"}),
                _header(SIGNATURE_HEADER, _SIGNATURE_TEXT, {"type": "string"}, required=False),
                *more,
            ],
            "requestBody": {"required": True, "content": content},
            "responses": _ANSWERS,
        }
    }


def _attributes() -> tuple[dict[str, Any], ...]:
    text = {"type": "string"}
    return (
        _header("ce-specversion", "The version of CloudEvents.", {"const": "1.0"}),
        _header("ce-id", "The id that its producer gave the event.", text),
        _header("ce-source", "What produced it, as a URI-reference.", text),
        _header("ce-type", "The event's type.", text),
        _header("ce-time", "The event's time.", {"type": "string", "format": "date-time"}),
        _header("ce-subject", "What it is about.", text, required=False),
    )


def _header(name: str, text: str, schema: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": required, "description": text, "schema": schema}
