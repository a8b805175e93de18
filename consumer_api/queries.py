"""What callers ask lists by: query strings."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

from pydantic import (
    Field,
)

from consumer_api.export_formats import ExportFormat
from consumer_api.query_fields import (
    Created,
    Cursor,
    DeliveryKey,
    EventKey,
    EventType,
    ExternalId,
    Moment,
    ReplayKey,
    Source,
    SubscriptionKey,
    Tenant,
    within_rule,
)
from infra.store.attempts import AttemptedFilter, AttemptFilter
from infra.store.dead_letters import DeadLetterFilter
from infra.store.history import DeliveryFilter, EventFilter
from schemas.deliveries import DeadLetterKind, Outcome, Status, StatusClass
from schemas.errors import InvalidInput
from schemas.fields import (
    description_fault,
)
from schemas.health import Health
from schemas.inputs import Input
from schemas.subscriptions import State

MAX_PAGE: Final = 200
DEFAULT_PAGE: Final = 50
MAX_WAIT_S: Final = 20
DEFAULT_WAIT_S: Final = 5
MAX_SEARCHED_DAYS: Final = 31
MAX_STATS_DAYS: Final = 7
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


class PartQuery(Input):
    """`cursor`: the `next_cursor` of the call that did the part before."""

    cursor: Cursor | None = None


class ListQuery(Input):
    """A page, or with a `format` other than JSON all from `cursor` on. Without it, the header Accept says it."""

    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE
    cursor: Cursor | None = None
    format: ExportFormat | None = None


class SubscriptionsQuery(ListQuery):
    tenant: Tenant | None = None
    state: State | None = None
    health: Health | None = None


class TrialQuery(Input):
    """How long to wait for the attempt; 0 for not at all."""

    wait_s: Annotated[float, Field(ge=0, le=MAX_WAIT_S, allow_inf_nan=False)] = DEFAULT_WAIT_S


class PreviewQuery(Input):
    """`subscription_id`: the one to explain, and to compose the request for. `cursor` as of a list."""

    subscription_id: SubscriptionKey | None = None
    cursor: Cursor | None = None


class EventsQuery(ListQuery, Created):
    tenant: Tenant | None = None
    type: EventType | None = None
    source: Source | None = None
    external_id: ExternalId | None = None

    def wanted(self) -> EventFilter:
        return EventFilter(self.tenant, self.type, self.source, self.external_id, self.created())


class DeliveriesQuery(ListQuery, Created):
    subscription_id: SubscriptionKey | None = None
    event_id: EventKey | None = None
    tenant: Tenant | None = None
    event_type: EventType | None = None
    status: tuple[Status, ...] = ()
    replay_id: ReplayKey | None = None
    status_class: StatusClass | None = None
    text: Annotated[str, within_rule(description_fault), Field(min_length=3, max_length=200)] | None = None

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


class AttemptsQuery(ListQuery, Created):
    delivery_id: DeliveryKey | None = None
    subscription_id: SubscriptionKey | None = None
    tenant: Tenant | None = None
    outcome: Outcome | None = None
    status_class: StatusClass | None = None

    def wanted(self) -> AttemptFilter:
        return AttemptFilter(
            self.delivery_id, self.subscription_id, self.tenant, self.outcome, self.status_class, self.created()
        )


class DeadLettersQuery(ListQuery, Created):
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


class ReplaysQuery(ListQuery):
    tenant: Tenant | None = None
    state: Literal["running", "completed", "canceled"] | None = None


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
