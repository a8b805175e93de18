"""How rows look from outside. Pure: rows in, JSON-ready values out. Ids are public, secrets are not shown."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, cast
from uuid import UUID

import orjson

from consumer_api.cursors import encode_cursor
from consumer_api.subscription_views import (
    AuthView,
    CertificateView,
    ExponentialPolicyView,
    HmacSignatureView,
    ListPolicyView,
    PlainHeaderView,
    SecretView,
    StandardSignatureView,
    SubscriptionView,
    TlsView,
)
from consumer_api.views import (
    AcceptedEventView,
    AttemptView,
    BulkView,
    DeadLetterView,
    DeadLetterWithBodyView,
    DeliveryView,
    ErrorDetail,
    EventView,
    ExpungedView,
    ProgressView,
    RedeliveredView,
    RedeliveryView,
    ReplayCountView,
    ReplayFilterView,
    ReplayView,
    ReplayWithProgressView,
    TimingsView,
)
from infra.store.dead_letters import DeadLetter, DeadLetterRow
from infra.store.deliveries import DeliveryRow
from infra.store.expunging import Expunction
from infra.store.history import AttemptRow, DeliveryFilter, EventRow
from infra.store.replays import Progress, ReplayRow, encode_filter
from infra.store.subscriptions import SubscriptionRow
from schemas.certificates import describe_certificates
from schemas.deliveries import DeadLetterKind, Failure, Status, Timings
from schemas.destination_auth import Auth, Tls, shown_auth
from schemas.errors import Problem
from schemas.events import Event
from schemas.formats import Format
from schemas.health import judge_health
from schemas.ids import ATTEMPT, DEAD_LETTER, DELIVERY, EVENT, REPLAY, SECRET, SUBSCRIPTION, key_time, public_id
from schemas.subscription_headers import REDACTED, Header
from schemas.subscriptions import State

_MOMENTS: Final = ("created_after", "created_before", "died_after", "died_before")


@dataclass(frozen=True, slots=True)
class ShownSecret:
    """What may be shown of a secret that signs; its `text` only where it is new, in the one answer that tells it."""

    version: str | None  # None where it signs in no version of Standard Webhooks
    expires_at: datetime | None
    public_key: str | None = None
    text: str | None = field(default=None, repr=False)
    id: UUID | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Opened:
    """A subscription's encrypted parts, as far as they are shown: headers, and which secrets sign until when."""

    headers: Mapping[str, Header]
    secrets: tuple[ShownSecret, ...]
    auth: Auth | None = None
    tls: Tls | None = None


def subscription_view(row: SubscriptionRow, opened: Opened | None) -> SubscriptionView:
    """A subscription. `opened` is None when no configured key decrypts it; then its deliveries are held."""
    return {
        "id": public_id(SUBSCRIPTION, row.id),
        "tenant": row.tenant,
        "url": row.url,
        "event_types": row.event_types,
        "filter": row.filter,
        "description": row.description,
        "state": State(row.state),
        "state_reason": row.state_reason,
        "mode": cast(Literal["open", "held"], row.mode),
        "breaker": {"state": "closed" if row.breaker_until is None else "open", "rests_until": row.breaker_until},
        "streak": {"failures": row.failures, "failing_since": row.failing_since},
        "health": judge_health(state=row.state, breaker_open=row.breaker_until is not None, failures=row.failures),
        "headers": None if opened is None else {name: _header(one) for name, one in opened.headers.items()},
        "secrets": None if opened is None else [_secret_view(one) for one in opened.secrets],
        "auth": None if opened is None or opened.auth is None else cast(AuthView, shown_auth(opened.auth)),
        "tls": None if opened is None or opened.tls is None else tls_view(opened.tls),
        "decryptable": opened is not None,
        "retry_policy": cast(ListPolicyView | ExponentialPolicyView, {"max_age_s": None} | row.retry_policy),
        "timeout_s": row.timeout_s,
        "rate_limit": None if row.rate_per_s is None else {"requests_per_s": row.rate_per_s, "burst": row.rate_burst},
        "ordered": row.ordered,
        "format": Format(row.format),
        "signature": cast(StandardSignatureView | HmacSignatureView, row.signature),
        "handshake": {
            "asked": row.handshake,
            "validated_at": row.validated_at,
            "allowed_per_min": row.allowed_per_min,
        },
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }


def _header(header: Header) -> Literal["[redacted]"] | PlainHeaderView:
    """As it may be sent back, but for what is secret."""
    return REDACTED if header.secret else {"value": header.value, "secret": False}


def _secret_view(secret: ShownSecret) -> SecretView:
    shown: SecretView = {
        "id": _public(SECRET, secret.id),
        "version": secret.version,
        "expires_at": secret.expires_at,
    }
    if secret.public_key is not None:
        shown["public_key"] = secret.public_key
    if secret.text is not None:
        shown["secret"] = secret.text
    return shown


def tls_view(tls: Tls) -> TlsView:
    """Which certificates there are, by what can be compared with the files that they came from; no key."""
    return {
        "client_certificate": _certificates(tls.client_certificate),
        "client_key": None if tls.client_key is None else REDACTED,
        "ca": _certificates(tls.ca),
    }


def event_view(row: EventRow) -> EventView:
    """An event, its `data` byte for byte as it came; null where it was expunged."""
    return {
        "id": public_id(EVENT, row.id),
        "external_id": row.external_id,
        "tenant": row.tenant,
        "source": row.source,
        "type": row.type,
        "subject": row.subject,
        "time": row.time,
        "accepted_at": key_time(row.id),
        "admitted_at": row.admitted_at,
        "headers": row.headers or {},
        "data": None if row.expunged_at is not None else orjson.Fragment(row.data),
        "expunged_at": row.expunged_at,
    }


def delivery_view(row: DeliveryRow) -> DeliveryView:
    return {
        "id": public_id(DELIVERY, row.id),
        "event_id": public_id(EVENT, row.event_id),
        "subscription_id": public_id(SUBSCRIPTION, row.subscription_id),
        "tenant": row.tenant,
        "event_type": row.event_type,
        "status": Status(row.status),
        "reason": row.reason,
        "attempt_count": row.attempts,
        "cycle": row.cycle,
        "next_attempt_at": row.next_attempt_at,
        "in_progress": row.claimed_by is not None,
        "replay_id": _public(REPLAY, row.replay_id),
        "created_at": key_time(row.id),
        "updated_at": row.updated_at,
    }


def attempt_view(row: AttemptRow) -> AttemptView:
    """An attempt. The response's beginning is shown as text; what is not UTF-8 in it is replaced.

    `timings` are the parts of `duration_ms`; null is what did not happen, as on a connection that was there already.
    """
    body = row.response_body
    return {
        "id": public_id(ATTEMPT, row.id),
        "delivery_id": public_id(DELIVERY, row.delivery_id),
        "cycle": row.cycle,
        "number": row.number,
        "started_at": row.started_at,
        "duration_ms": row.duration_ms,
        "timings": cast(TimingsView, {name: getattr(row, name) for name in Timings._fields}),
        "outcome": cast(Literal["delivered", "retry", "dead"], row.outcome),
        "superseded": row.superseded,
        "status_code": row.status_code,
        "failure": None if row.failure is None else Failure(row.failure),
        "reason": row.reason,
        "response_headers": row.response_headers,
        "response_body": None if body is None else body.decode(errors="replace"),
        "remote_address": row.remote_address,
        "url": row.url,
    }


def dead_letter_view(row: DeadLetterRow) -> DeadLetterView:
    return {
        "id": public_id(DEAD_LETTER, row.id),
        "kind": DeadLetterKind(row.kind),
        "reason": row.reason,
        "state": cast(Literal["open", "replayed", "discarded"], row.state),
        "tenant": row.tenant,
        "delivery_id": _public(DELIVERY, row.delivery_id),
        "cycle": row.cycle,
        "subscription_id": _public(SUBSCRIPTION, row.subscription_id),
        "event_id": _public(EVENT, row.event_id),
        "message_id": row.message_id,
        "routing_key": row.routing_key,
        "created_at": row.created_at,
        "settled_at": row.settled_at,
        "discard_reason": row.discard_reason,
    }


def dead_letter_with_body_view(letter: DeadLetter) -> DeadLetterWithBodyView:
    """A dead letter and the original bytes: in base64, and as text too when they are UTF-8."""
    body = letter.body
    return {
        **dead_letter_view(letter.row),
        "body_base64": None if body is None else base64.b64encode(body).decode(),
        "body_text": None if body is None else _text(body),
        "message": letter.properties,
    }


def replay_view(row: ReplayRow) -> ReplayView:
    return {
        "id": public_id(REPLAY, row.id),
        "state": cast(Literal["running", "completed", "canceled"], row.state),
        "filter": _filter_view(row.filter),
        "matched": row.matched,
        "replayed": row.replayed,
        "skipped": row.skipped,
        "max_per_s": row.max_per_s,
        "created_at": row.created_at,
        "ended_at": row.ended_at,
    }


def replay_with_progress_view(row: ReplayRow, progress: Progress) -> ReplayWithProgressView:
    shown: ProgressView = {
        "total": row.matched,
        "sent": row.replayed,
        "skipped": row.skipped,
        "delivered": progress.delivered,
        "failed": progress.dead,
        "canceled": progress.canceled,
        "waiting": progress.waiting,
    }
    return {**replay_view(row), "progress": shown}


def replay_count_view(wanted: DeliveryFilter, matched: int) -> ReplayCountView:
    return {"dry_run": True, "matched": matched, "filter": filter_view(wanted)}


def filter_view(wanted: DeliveryFilter) -> ReplayFilterView:
    return _filter_view(encode_filter(wanted))


def _filter_view(stored: dict[str, Any]) -> ReplayFilterView:
    return cast(ReplayFilterView, stored | _moments(stored, *_MOMENTS))


def _certificates(pem: str | None) -> list[CertificateView] | None:
    return None if pem is None else [cast(CertificateView, asdict(one)) for one in describe_certificates(pem)]


def _moments(stored: dict[str, Any], *names: str) -> dict[str, datetime]:
    """Those of the fields that are set, as moments, so that they are written like every other."""
    return {name: datetime.fromisoformat(stored[name]) for name in names if stored.get(name) is not None}


def _public(prefix: str, key: UUID | None) -> str | None:
    return None if key is None else public_id(prefix, key)


def _text(body: bytes) -> str | None:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None


def bulk_view(matched: int, changed: int, next_after: UUID | None, *, dry_run: bool = False) -> BulkView:
    return {
        "dry_run": dry_run,
        "matched": matched,
        "changed": changed,
        "has_more": next_after is not None,
        "next_cursor": None if next_after is None else encode_cursor(next_after),
    }


def redelivery_view(event_id: UUID, results: Sequence[RedeliveredView], next_after: UUID | None) -> RedeliveryView:
    counts = Counter(one["result"] for one in results)
    return {
        "event_id": public_id(EVENT, event_id),
        "redelivered": counts["redelivered"],
        "created": counts["created"],
        "skipped": counts["skipped"],
        "deliveries": list(results),
        "has_more": next_after is not None,
        "next_cursor": None if next_after is None else encode_cursor(next_after),
    }


def expunged_view(done: Expunction) -> ExpungedView:
    return {
        "id": public_id(EVENT, done.event_id),
        "expunged_at": done.expunged_at,
        "canceled": done.canceled,
        "in_progress": done.in_progress,
    }


def accepted_view(event: Event, key: UUID, *, duplicate: bool, warnings: Sequence[Problem] = ()) -> AcceptedEventView:
    return {
        "id": public_id(EVENT, key),
        "external_id": event.external_id,
        "tenant": event.tenant,
        "source": event.source,
        "type": event.type,
        "subject": event.subject,
        "time": event.time,
        "duplicate": duplicate,
        "warnings": problem_views(warnings),
    }


def problem_views(problems: Sequence[Problem]) -> list[ErrorDetail]:
    return [{"field": problem.field, "message": problem.message} for problem in problems]
