"""Bodies of commands: what callers send besides subscriptions and events."""

from datetime import datetime, timedelta
from typing import Annotated, Final, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    SecretStr,
    Strict,
    model_validator,
)

from consumer_api.query_fields import (
    Created,
    EventType,
    Moment,
    SecretKey,
    SubscriptionKey,
    Tenant,
    within_rule,
)
from infra.store.history import DeliveryFilter, TimeRange
from schemas.deliveries import ENDED, UNFINISHED, Status
from schemas.errors import InvalidInput
from schemas.fields import (
    description_fault,
)
from schemas.formats import Version
from schemas.ids import SECRET, SUBSCRIPTION, public_id
from schemas.inputs import Input, rule
from schemas.subscriptions import Rate

MAX_GRACE_S: Final = 604_800
DEFAULT_GRACE_S: Final = 86_400


class Discard(Input):
    """Why a dead letter is discarded, for who looks at it later."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "The endpoint was replaced."}]})

    reason: Annotated[str, within_rule(description_fault), Field(min_length=1)] | None = None


def _ended(status: Status) -> Status:
    rule(None if status in ENDED else "must be delivered, dead or canceled")
    return status


def _unfinished(status: Status) -> Status:
    rule(None if status in UNFINISHED else "must be pending, held or retrying")
    return status


class _Chosen(Created):
    """Deliveries by a filter, in which something must narrow them."""

    subscription_id: SubscriptionKey | None = None
    tenant: Tenant | None = None
    event_type: EventType | None = None

    @model_validator(mode="after")
    def _narrowed(self) -> Self:
        narrowing = ("subscription_id", "tenant", "event_type", "created_after", "created_before")
        open_to_all = all(getattr(self, name) is None for name in narrowing)
        rule(f"must have at least one of {', '.join(narrowing)}" if open_to_all else None)
        return self

    def _wanted(self, statuses: tuple[Status, ...]) -> DeliveryFilter:
        return DeliveryFilter(
            subscription_id=self.subscription_id,
            tenant=self.tenant,
            event_type=self.event_type,
            statuses=statuses,
            created=self.created(),
        )


class ReplayCreate(_Chosen):
    """Which deliveries to begin again. Without a `status`, the dead ones.

    Something must narrow them: an empty object would begin everything that is dead, of every tenant. `max_per_s` is how
    many of them are begun in a second, at most; without it, what the installation sets. With `dry_run` they are only
    counted.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"tenant": "acme", "status": ["dead"], "max_per_s": 20}]})

    status: Annotated[tuple[Annotated[Status, AfterValidator(_ended)], ...], Field(min_length=1, max_length=3)] = (
        Status.DEAD,
    )
    max_per_s: Rate | None = None
    dry_run: Annotated[bool, Strict()] = False

    def wanted(self) -> DeliveryFilter:
        return self._wanted(self.status)


class DeliveriesRetry(_Chosen):
    """Which deliveries to attempt now, of those that wait for their next attempt (`retrying`).

    Something must narrow them. With `dry_run` they are only counted, all of them.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"tenant": "acme", "event_type": "order.created"}]})

    dry_run: Annotated[bool, Strict()] = False

    def wanted(self) -> DeliveryFilter:
        return self._wanted((Status.RETRYING,))


class DeliveriesCancel(_Chosen):
    """Which deliveries to cancel, of those that have not ended. `dry_run` as of a retry."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tenant": "acme", "status": ["held"]}]})

    status: Annotated[tuple[Annotated[Status, AfterValidator(_unfinished)], ...], Field(min_length=1, max_length=3)] = (
        tuple(sorted(UNFINISHED))
    )
    dry_run: Annotated[bool, Strict()] = False

    def wanted(self) -> DeliveryFilter:
        return self._wanted(self.status)


class Redelivery(Input):
    """To which subscription to send an event again; without one, to all that it has a delivery to."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"subscription_id": public_id(SUBSCRIPTION, UUID(int=0))}]}
    )

    subscription_id: SubscriptionKey | None = None


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
