"""What callers send besides subscriptions and events: query strings, and the bodies of commands."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal, NoReturn, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    Strict,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from consumer_api.cursors import decode_cursor
from consumer_api.export_formats import ExportFormat
from consumer_api.views import id_schema
from infra.store.attempts import AttemptedFilter, AttemptFilter
from infra.store.dead_letters import DeadLetterFilter
from infra.store.history import DeliveryFilter, EventFilter, TimeRange
from schemas.deliveries import ENDED, DeadLetterKind, Outcome, Status, StatusClass
from schemas.errors import InvalidInput
from schemas.fields import (
    ID_SCHEMA,
    SOURCE_SCHEMA,
    TENANT_SCHEMA,
    TYPE_SCHEMA,
    description_fault,
    id_fault,
    source_fault,
    tenant_fault,
    type_fault,
)
from schemas.formats import Version
from schemas.health import Health
from schemas.ids import DELIVERY, EVENT, REPLAY, SECRET, SUBSCRIPTION, parse_id, public_id
from schemas.inputs import Input, rule
from schemas.subscriptions import Rate, State

MAX_PAGE: Final = 200
DEFAULT_PAGE: Final = 50
MAX_GRACE_S: Final = 604_800
DEFAULT_GRACE_S: Final = 86_400
MAX_WAIT_S: Final = 20
DEFAULT_WAIT_S: Final = 5
MAX_SEARCHED_DAYS: Final = 31
MAX_STATS_DAYS: Final = 7
_EPOCH: Final = datetime.fromtimestamp(0, UTC)

_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)  # RFC 3339


def _refuse(message: str) -> NoReturn:
    raise PydanticCustomError("rule", "{message}", {"message": message})


def _moment(value: object) -> datetime:
    """A moment as RFC 3339 writes it, and no other form: pydantic would also take numbers."""
    if isinstance(value, str) and _MOMENT.fullmatch(value):
        try:
            moment = datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
        else:
            if moment.year >= 1970:
                return moment
    _refuse("must be a time such as 2026-01-31T12:00:00Z (a + in a query string is written %2B)")


def _id(prefix: str) -> BeforeValidator:
    """A public id of one kind, read as its key."""

    def read(value: object) -> UUID:
        try:
            return parse_id(prefix, value if isinstance(value, str) else "")
        except InvalidInput as error:
            _refuse(error.problems[0].message)

    return BeforeValidator(read)


def _cursor(value: object) -> UUID:
    try:
        return decode_cursor(value if isinstance(value, str) else "")
    except InvalidInput as error:
        _refuse(error.problems[0].message)


def _text(fault: Callable[[str], str | None]) -> AfterValidator:
    """Text that keeps one of the rules of `schemas.fields`."""

    def check(text: str) -> str:
        rule(fault(text))
        return text

    return AfterValidator(check)


Moment = Annotated[datetime, BeforeValidator(_moment)]
SubscriptionKey = Annotated[UUID, _id(SUBSCRIPTION), WithJsonSchema(id_schema(SUBSCRIPTION))]
EventKey = Annotated[UUID, _id(EVENT), WithJsonSchema(id_schema(EVENT))]
SecretKey = Annotated[UUID, _id(SECRET), WithJsonSchema(id_schema(SECRET))]
DeliveryKey = Annotated[UUID, _id(DELIVERY), WithJsonSchema(id_schema(DELIVERY))]
Tenant = Annotated[str, _text(tenant_fault), Field(json_schema_extra=TENANT_SCHEMA)]
EventType = Annotated[str, _text(type_fault), Field(json_schema_extra=TYPE_SCHEMA)]
Source = Annotated[str, _text(source_fault), Field(json_schema_extra=SOURCE_SCHEMA)]
ExternalId = Annotated[str, _text(id_fault), Field(json_schema_extra=ID_SCHEMA)]
ReplayKey = Annotated[UUID, _id(REPLAY), WithJsonSchema(id_schema(REPLAY))]


class PageQuery(Input):
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE
    cursor: Annotated[UUID, BeforeValidator(_cursor), WithJsonSchema({"type": "string"})] | None = None


class ExportQuery(PageQuery):
    """Of a list that can be had whole. Without a `format`, the header Accept says it."""

    format: ExportFormat | None = None


class SubscriptionsQuery(ExportQuery):
    tenant: Tenant | None = None
    state: State | None = None
    health: Health | None = None


class TrialQuery(Input):
    """How long to wait for the attempt; 0 for not at all."""

    wait_s: Annotated[float, Field(ge=0, le=MAX_WAIT_S, allow_inf_nan=False)] = DEFAULT_WAIT_S


class PreviewQuery(Input):
    """`subscription_id`: the one to explain, and to compose the request for. `cursor` as of a list."""

    subscription_id: SubscriptionKey | None = None
    cursor: Annotated[UUID, BeforeValidator(_cursor)] | None = None


class _Created(Input):
    """A range of time: from `created_after`, inclusive, to `created_before`, exclusive."""

    created_after: Moment | None = None
    created_before: Moment | None = None

    def created(self) -> TimeRange:
        return TimeRange(self.created_after, self.created_before)


class EventsQuery(ExportQuery, _Created):
    tenant: Tenant | None = None
    type: EventType | None = None
    source: Source | None = None
    external_id: ExternalId | None = None

    def wanted(self) -> EventFilter:
        return EventFilter(self.tenant, self.type, self.source, self.external_id, self.created())


class DeliveriesQuery(ExportQuery, _Created):
    subscription_id: SubscriptionKey | None = None
    event_id: EventKey | None = None
    tenant: Tenant | None = None
    event_type: EventType | None = None
    status: tuple[Status, ...] = ()
    replay_id: ReplayKey | None = None
    status_class: StatusClass | None = None
    text: Annotated[str, _text(description_fault), Field(min_length=3, max_length=200)] | None = None

    def wanted(self) -> AttemptedFilter:
        """Raises InvalidInput for text that is sought at any time: nothing but reading finds it."""
        deliveries = DeliveryFilter(
            subscription_id=self.subscription_id,
            event_id=self.event_id,
            tenant=self.tenant,
            event_type=self.event_type,
            statuses=self.status,
            created=self.created(),
            replay_id=self.replay_id,
        )
        if self.text is not None:
            for name in ("created_after", "created_before"):
                if getattr(self, name) is None:
                    raise InvalidInput.of(name, "is required with text")
            assert self.created_after is not None
            assert self.created_before is not None
            if self.created_before - self.created_after > timedelta(days=MAX_SEARCHED_DAYS):
                raise InvalidInput.of("created_before", f"must be at most {MAX_SEARCHED_DAYS} days after created_after")
        return AttemptedFilter(deliveries, self.status_class, self.text)


class AttemptsQuery(ExportQuery, _Created):
    delivery_id: DeliveryKey | None = None
    subscription_id: SubscriptionKey | None = None
    tenant: Tenant | None = None
    outcome: Outcome | None = None
    status_class: StatusClass | None = None

    def wanted(self) -> AttemptFilter:
        return AttemptFilter(
            self.delivery_id, self.subscription_id, self.tenant, self.outcome, self.status_class, self.created()
        )


class DeadLettersQuery(ExportQuery, _Created):
    kind: DeadLetterKind | None = None
    state: Literal["open", "replayed", "discarded"] | None = None
    tenant: Tenant | None = None
    subscription_id: SubscriptionKey | None = None
    delivery_id: DeliveryKey | None = None
    event_id: EventKey | None = None

    def wanted(self) -> DeadLetterFilter:
        return DeadLetterFilter(
            self.kind, self.state, self.tenant, self.subscription_id, self.delivery_id, self.event_id, self.created()
        )


class Discard(Input):
    """Why a dead letter is discarded, for who looks at it later."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "The endpoint was replaced."}]})

    reason: Annotated[str, _text(description_fault), Field(min_length=1)] | None = None


class ReplaysQuery(ExportQuery):
    tenant: Tenant | None = None
    state: Literal["running", "completed", "canceled"] | None = None


def _ended(status: Status) -> Status:
    rule(None if status in ENDED else "must be delivered, dead or canceled")
    return status


class ReplayCreate(_Created):
    """Which deliveries to begin again. Without a `status`, the dead ones.

    Something must narrow them: an empty object would begin everything that is dead, of every tenant. `max_per_s` is how
    many of them are begun in a second, at most; without it, what the installation sets. With `dry_run` they are only
    counted.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"tenant": "acme", "status": ["dead"], "max_per_s": 20}]})

    subscription_id: SubscriptionKey | None = None
    tenant: Tenant | None = None
    event_type: EventType | None = None
    status: Annotated[tuple[Annotated[Status, AfterValidator(_ended)], ...], Field(min_length=1, max_length=3)] = (
        Status.DEAD,
    )
    max_per_s: Rate | None = None
    dry_run: Annotated[bool, Strict()] = False

    @model_validator(mode="after")
    def _narrowed(self) -> Self:
        narrowing = ("subscription_id", "tenant", "event_type", "created_after", "created_before")
        open_to_all = all(getattr(self, name) is None for name in narrowing)
        rule(f"must have at least one of {', '.join(narrowing)}" if open_to_all else None)
        return self

    def wanted(self) -> DeliveryFilter:
        return DeliveryFilter(
            subscription_id=self.subscription_id,
            tenant=self.tenant,
            event_type=self.event_type,
            statuses=self.status,
            created=self.created(),
        )


class StatsQuery(Input):
    """A range of time: from `since`, inclusive, to `until`, exclusive; by default a day, up to now."""

    since: Moment | None = None
    until: Moment | None = None

    def within(self, now: datetime) -> tuple[datetime, datetime]:
        """The range. Raises InvalidInput for one that is empty or longer than may be counted."""
        until = now if self.until is None else min(self.until, now)
        since = max(until - timedelta(days=1), _EPOCH) if self.since is None else self.since
        if since >= until:
            raise InvalidInput.of("since", "must be before until, and not in the future")
        if until - since > timedelta(days=MAX_STATS_DAYS):
            raise InvalidInput.of("since", f"must be at most {MAX_STATS_DAYS} days before until")
        return since, until


class Recovery(Input):
    """What to send again to a subscription: what died from `since`, inclusive, to `until`, exclusive, or to now.

    `max_per_s` as of a replay.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"since": "2026-01-31T12:00:00Z"}]})

    since: Moment
    until: Moment | None = None
    max_per_s: Rate | None = None

    def wanted(self, subscription_id: UUID, *, now: datetime, retention: timedelta) -> DeliveryFilter:
        """Its deliveries that died then. Raises InvalidInput for a time of which there is nothing, or no more."""
        if self.since > now:
            raise InvalidInput.of("since", "must not be in the future")
        if self.since < now - retention:
            raise InvalidInput.of("since", f"must be within the {retention.days} days that deliveries are kept")
        until = now if self.until is None else min(self.until, now)
        if until <= self.since:
            raise InvalidInput.of("until", "must be after since")
        return DeliveryFilter(
            subscription_id=subscription_id, statuses=(Status.DEAD,), died=TimeRange(self.since, until)
        )


class SecretExpiry(Input):
    """Which secret ends now; without one, all that are to end."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"secret_id": public_id(SECRET, UUID(int=0))}]})

    secret_id: SecretKey | None = None


class SecretRotation(Input):
    """The new secret signs at once; those before it sign too for `grace_s` seconds more. Without one, one is made.

    Which secret fits, the subscription's signature says (`consumer_api.signing`). Where several versions sign, all are
    rotated unless a `version` or a `secret` tells which.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"grace_s": 3600}]})

    secret: SecretStr | None = None
    version: Version | None = None
    grace_s: Annotated[int, Strict(), Field(ge=0, le=MAX_GRACE_S)] = DEFAULT_GRACE_S
