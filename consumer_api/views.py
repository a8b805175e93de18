"""The shapes of answers, as TypedDicts: the document describes them, and mypy checks what is made of rows.

A field that may be missing is NotRequired; one that is there without a value is null. Fields are added, never renamed.
"""

from datetime import datetime
from typing import Annotated, Any, Final, Generic, Literal, NotRequired
from uuid import UUID

from pydantic import Field, JsonValue, WithJsonSchema
from typing_extensions import TypedDict, TypeVar  # pydantic reads no other TypedDict before Python 3.12

from consumer_api.errors import ErrorCode
from schemas.deliveries import DeadLetterKind, Failure, Status
from schemas.ids import ATTEMPT, DEAD_LETTER, DELIVERY, EVENT, REPLAY, SECRET, SUBSCRIPTION, id_pattern, public_id

_SOME_KEY: Final = UUID("01920a3f-5b7c-7d10-9c4e-3f2a1b0c9d8e")

Item = TypeVar("Item")


def id_schema(prefix: str) -> dict[str, Any]:
    """The JSON Schema of an id of one kind."""
    return {"type": "string", "pattern": id_pattern(prefix), "examples": [public_id(prefix, _SOME_KEY)]}


SubscriptionId = Annotated[str, WithJsonSchema(id_schema(SUBSCRIPTION))]
EventId = Annotated[str, WithJsonSchema(id_schema(EVENT))]
DeliveryId = Annotated[str, WithJsonSchema(id_schema(DELIVERY))]
AttemptId = Annotated[str, WithJsonSchema(id_schema(ATTEMPT))]
DeadLetterId = Annotated[str, WithJsonSchema(id_schema(DEAD_LETTER))]
SecretId = Annotated[str, WithJsonSchema(id_schema(SECRET))]
ReplayId = Annotated[str, WithJsonSchema(id_schema(REPLAY))]
Tenant = Annotated[str, Field(examples=["acme"])]
EventType = Annotated[str, Field(examples=["order.created"])]
EndpointUrl = Annotated[str, Field(examples=["https://shop.example/webhooks"])]


class Page(TypedDict, Generic[Item]):
    """Part of a list. `next_cursor` is the `cursor` that asks for the next part; null where there is none."""

    data: list[Item]
    has_more: bool
    next_cursor: str | None


class ErrorDetail(TypedDict):
    """A field at fault: its dotted path, and what would be right."""

    field: str
    message: str


class ErrorView(TypedDict):
    """What went wrong. Programs branch on `code`, people read `message`."""

    code: ErrorCode
    message: str
    details: list[ErrorDetail]
    timestamp: datetime
    request_id: str


class ErrorEnvelope(TypedDict):
    """Every answer that is an error has this shape."""

    error: ErrorView


class AcceptedEventView(TypedDict):
    """An event that was accepted. `duplicate` is true where it had been before."""

    id: EventId
    external_id: str
    tenant: Tenant
    source: str
    type: EventType
    subject: str | None
    time: datetime
    duplicate: bool
    warnings: Annotated[
        list[ErrorDetail], Field(description="what the catalogue of event types has against it, where that only warns")
    ]


# The bytes that came are spliced in (`orjson.Fragment`), so what stands here is any JSON.
JsonData = Annotated[
    Any,
    WithJsonSchema(
        {
            "description": "Any JSON, byte for byte as it came; null where it was expunged.",
            "examples": [{"total": "1.10"}],
        }
    ),
]


class EventView(TypedDict):
    id: EventId
    external_id: str
    tenant: Tenant
    source: str
    type: EventType
    subject: str | None
    time: datetime
    accepted_at: datetime
    admitted_at: datetime
    headers: dict[str, str]
    data: JsonData
    expunged_at: Annotated[datetime | None, Field(description="When data and headers were overwritten, if they were.")]


class DeliveryView(TypedDict):
    """One event on its way to one subscription. `cycle` counts its replays, `attempt_count` attempts in the cycle."""

    id: DeliveryId
    event_id: EventId
    subscription_id: SubscriptionId
    tenant: Tenant
    event_type: EventType
    status: Status
    reason: str | None
    attempt_count: int
    cycle: int
    next_attempt_at: datetime | None
    in_progress: bool
    replay_id: Annotated[ReplayId | None, Field(description="The replay in bulk that began its cycle, if one did.")]
    created_at: datetime
    updated_at: datetime


class TrialView(DeliveryView):
    """The delivery of a test event; `attempt` is null where none was recorded in time."""

    attempt: "AttemptView | None"


class TimingsView(TypedDict):
    """The parts of `duration_ms`; null is what did not happen, as on a connection that was there already."""

    dns_ms: int | None
    connect_ms: int | None
    tls_ms: int | None
    first_byte_ms: int | None


class AttemptView(TypedDict):
    """An attempt. `outcome` is what it led to; a superseded one came after its claim was lost."""

    id: AttemptId
    delivery_id: DeliveryId
    cycle: int
    number: int
    started_at: datetime
    duration_ms: int
    timings: TimingsView
    outcome: Literal["delivered", "retry", "dead"]
    superseded: bool
    status_code: int | None
    failure: Failure | None
    reason: str | None
    response_headers: dict[str, str] | None
    response_body: str | None
    remote_address: str | None
    url: EndpointUrl


TimelineStep = Literal[
    "event_accepted",
    "event_admitted",
    "cycle_began",
    "retried",
    "attempt",
    "dead",
    "discarded",
    "held",
    "in_progress",
    "retry_due",
    "canceled",
]


class TimelineEntryView(TypedDict):
    """Something that happened to a delivery, or is to. Only what its rows tell: a wait that is over left none.

    `event_accepted` and `event_admitted` are of its event. `cycle_began`: it was begun again, in bulk by `replay_id`,
    or by hand where that is null. `retried`: by hand, this one alone. `held`, `in_progress` and `canceled` are how it
    stands, `at` the last change of that; `retry_due` is when its next attempt may be made.
    """

    at: datetime
    what: TimelineStep
    cycle: int
    reason: str | None
    attempt_id: AttemptId | None
    number: int | None
    outcome: Literal["delivered", "retry", "dead"] | None
    status_code: int | None
    superseded: bool | None
    dead_letter_id: DeadLetterId | None
    replay_id: ReplayId | None


class DeliveryWithAttemptsView(DeliveryView):
    """A delivery, its latest attempts, and what became of it in order of time, as far back as those go."""

    attempts: list[AttemptView]
    timeline: list[TimelineEntryView]


class DeadLetterView(TypedDict):
    id: DeadLetterId
    kind: DeadLetterKind
    reason: str
    state: Literal["open", "replayed", "discarded"]
    tenant: Tenant | None
    delivery_id: DeliveryId | None
    cycle: int | None
    subscription_id: SubscriptionId | None
    event_id: EventId | None
    message_id: str | None
    routing_key: str | None
    created_at: datetime
    settled_at: datetime | None
    discard_reason: str | None


class DeadLetterWithBodyView(DeadLetterView):
    """A dead letter and the original bytes: in base64, and as text too when they are UTF-8.

    `message` are the headers and properties that the message came with; null for a delivery.
    """

    body_base64: str | None
    body_text: str | None
    message: dict[str, JsonValue] | None


class ReplayFilterView(TypedDict):
    """Which deliveries are begun again, as of when the replay was made."""

    subscription_id: SubscriptionId | None
    tenant: Tenant | None
    event_type: EventType | None
    status: list[Status]
    created_after: datetime | None
    created_before: datetime | None
    died_after: NotRequired[datetime]
    died_before: NotRequired[datetime]


class ReplayView(TypedDict):
    id: ReplayId
    state: Literal["running", "completed", "canceled"]
    filter: ReplayFilterView
    matched: int
    replayed: int
    skipped: int
    max_per_s: float
    created_at: datetime
    ended_at: datetime | None


class ProgressView(TypedDict):
    """How far a replay is: of `total` so many are begun again (`sent`), or no longer could be (`skipped`).

    Of those sent so many were `delivered`, `failed` for good, or were `canceled`; `waiting` have not ended. One that
    somebody has begun again since is counted there, and not here.
    """

    total: int
    sent: int
    skipped: int
    delivered: int
    failed: int
    canceled: int
    waiting: int


class ReplayWithProgressView(ReplayView):
    progress: ProgressView


class ReplayCountView(TypedDict):
    """What a replay would begin again."""

    dry_run: Literal[True]
    matched: int
    filter: ReplayFilterView


class BulkView(TypedDict):
    """What was done to many deliveries in one call: of `matched` in this part so many were `changed`.

    The others were not as asked for any more when their turn came, or are being attempted just now. `has_more`: ask
    again, with `next_cursor` as `cursor`. With `dry_run`, `matched` are all, and nothing is changed.
    """

    dry_run: bool
    matched: int
    changed: int
    has_more: bool
    next_cursor: str | None


class RedeliveredView(TypedDict):
    """What was done for one subscription: its delivery begins again, was made, or was passed over for the reason."""

    subscription_id: SubscriptionId
    delivery_id: DeliveryId
    result: Literal["redelivered", "created", "skipped"]
    reason: str | None


class RedeliveryView(TypedDict):
    """What was done to send an event again. `has_more`: ask again, with `next_cursor` as `cursor`."""

    event_id: EventId
    redelivered: int
    created: int
    skipped: int
    deliveries: list[RedeliveredView]
    has_more: bool
    next_cursor: str | None


class ExpungedView(TypedDict):
    """An event whose payload is gone.

    So many deliveries that had not ended were `canceled`. Of those `in_progress` a dispatcher may have the payload in
    hand, and send it once more.
    """

    id: EventId
    expunged_at: datetime
    canceled: int
    in_progress: int


class AliveView(TypedDict):
    status: Literal["ok"]


class ReadyView(TypedDict):
    """`ok`, or the kind of error, for each."""

    broker: str
    store: str
