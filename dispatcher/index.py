"""Every subscription, compiled, in memory: what an event matches, and how each endpoint is reached.

The version in the database says whether this is current. Admission asks inside its own transaction, where the version
cannot move (`share_subscriptions`), so an event published after a subscription's 201 reaches it, always.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from uuid import UUID

import asyncpg
import orjson
import structlog
from pydantic import TypeAdapter

from dispatcher.core.credentials import sent_secrets, static_headers
from dispatcher.core.echo import to_hide
from dispatcher.core.handshake import ORIGIN_HEADER
from dispatcher.core.pace import RateLimit, narrowed
from dispatcher.core.request import HexHeader, Recipe
from dispatcher.core.topics import TopicIndex
from infra.crypto import Vault
from schemas.destination_auth import Auth, OAuth2Auth, Tls, auth_header, read_auth, read_tls
from schemas.errors import SecretUnreadable
from schemas.formats import Format, HmacSignature, Signature, read_signature, signing_key
from schemas.signatures import SigningKey
from schemas.subscription_headers import decode_headers
from schemas.subscriptions import DEFAULT_POLICY, RetryPolicy, State, decode_secrets, signing

log = structlog.get_logger(__name__)

_CHANGED = """
SELECT id, tenant, url, event_types, state, timeout_s, retry_policy, rate_per_s, rate_burst, ordered, headers,
       secrets, format, signature, auth, tls, handshake, validated_at, allowed_per_min, deleted_at, version
FROM subscriptions WHERE version > $1 AND ($1 > 0 OR deleted_at IS NULL) ORDER BY version
"""
_VERSION = "SELECT version FROM subscription_version"
_ROWS_AT_ONCE = 100  # compiled before others may run: 100,000 would keep the heartbeat waiting for 10 s (measured)
UNREADABLE = "it cannot be read by this dispatcher, whose release may be another than that which wrote it"
UNDECRYPTABLE = "its secrets cannot be decrypted with the configured keys"
UNSIGNED = "it has no secret that signs: rotate its secret"

_policies: TypeAdapter[RetryPolicy] = TypeAdapter(RetryPolicy)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A subscription as the dispatcher uses it. `blocked` says why nothing may be sent to it now, None when it may.

    `limit` is the narrower of its own and what the endpoint allows. `asks_first`: the endpoint is to agree by a
    handshake before anything is POSTed, and has not yet.
    """

    id: UUID
    tenant: str
    url: str
    patterns: tuple[str, ...]
    timeout_s: int
    policy: RetryPolicy
    recipe: Recipe = field(repr=False)
    limit: RateLimit | None
    ordered: bool
    blocked: str | None
    asks_first: bool = False
    auth_headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # the recipe has them too
    oauth: OAuth2Auth | None = field(default=None, repr=False)
    tls: Tls | None = field(default=None, repr=False)


class SubscriptionIndex:
    """The compiled subscriptions of all tenants. `refresh` before use; then every look-up is in memory."""

    def __init__(self, vault: Vault, *, origin: str) -> None:
        """`origin` is how an endpoint that was asked to agree knows us, in every request."""
        self.version = 0
        self._vault = vault
        self._origin = origin
        self._endpoints: dict[UUID, Endpoint] = {}
        self._topics: dict[str, TopicIndex[UUID]] = {}
        self._refreshing = asyncio.Lock()

    def get(self, subscription: UUID) -> Endpoint | None:
        """The endpoint, or None when its subscription was deleted."""
        return self._endpoints.get(subscription)

    def match(self, tenant: str, event_type: str) -> Iterator[Endpoint]:
        """Every endpoint of the tenant that wants this type and is not disabled, in order of id."""
        topics = self._topics.get(tenant)
        if topics is not None:
            for subscription in sorted(topics.match(event_type)):
                yield self._endpoints[subscription]

    async def refresh(self, connection: asyncpg.Connection) -> None:
        """Read what has changed, if anything has. One small statement when nothing has."""
        version = await connection.fetchval(_VERSION)
        if version <= self.version:
            return
        async with self._refreshing:  # an older answer must not be applied over a newer one
            for number, row in enumerate(await connection.fetch(_CHANGED, self.version)):
                self._apply(row)
                if number % _ROWS_AT_ONCE == _ROWS_AT_ONCE - 1:
                    await asyncio.sleep(0)
            self.version = max(self.version, version)

    def _apply(self, row: asyncpg.Record) -> None:
        self._forget(row["id"])
        if row["deleted_at"] is not None:
            return
        try:
            endpoint = self._compile(row)
        except Exception as error:  # noqa: BLE001 - one row, of whatever release, must not keep all others away
            # No traceback, which could quote a secret.
            log.error("subscription.unreadable", subscription=str(row["id"]), error=type(error).__name__)  # noqa: TRY400
            endpoint = _unreadable(row)
        self._endpoints[endpoint.id] = endpoint
        if row["state"] != State.DISABLED:
            topics = self._topics.setdefault(endpoint.tenant, TopicIndex())
            for pattern in endpoint.patterns:
                topics.add(pattern, endpoint.id)

    def _forget(self, subscription: UUID) -> None:
        known = self._endpoints.pop(subscription, None)
        if known is not None and known.tenant in self._topics:
            for pattern in known.patterns:
                self._topics[known.tenant].remove(pattern, subscription)

    def _compile(self, row: asyncpg.Record) -> Endpoint:
        blocked = None if row["state"] == State.ENABLED else f"the subscription is {row['state']}"
        keys: Iterable[tuple[SigningKey, datetime | None]] = ()
        headers: Mapping[str, str] = {}
        shown_back: list[str] = []  # by an endpoint that answers with what it was sent
        signature = _signature(orjson.dumps(row["signature"]))
        auth: Auth | None = None
        tls: Tls | None = None
        try:
            secrets = decode_secrets(self._vault.decrypt(row["secrets"]))
            keys = [(signing_key(one.text, signature), one.expires_at) for one in signing(secrets, signature)]
            if not any(expires_at is None for _, expires_at in keys):
                blocked = blocked or UNSIGNED
            if row["headers"] is not None:
                stored = decode_headers(self._vault.decrypt(row["headers"]))
                headers = {name: one.value for name, one in stored.items()}
                shown_back = [one.value for one in stored.values() if one.secret]
            auth = None if row["auth"] is None else read_auth(self._vault.decrypt(row["auth"]))
            tls = None if row["tls"] is None else read_tls(self._vault.decrypt(row["tls"]))
        except SecretUnreadable:
            blocked = blocked or UNDECRYPTABLE
            log.warning("subscription.undecryptable", subscription=str(row["id"]))
        if row["handshake"]:
            headers = {**headers, ORIGIN_HEADER: self._origin}
        return Endpoint(
            id=row["id"],
            tenant=row["tenant"],
            url=row["url"],
            patterns=tuple(row["event_types"]),
            timeout_s=row["timeout_s"],
            policy=_policy(orjson.dumps(row["retry_policy"])),
            recipe=Recipe(
                _with_auth(headers, auth),
                tuple(keys),
                Format(row["format"]),
                _hex_header(signature),
                to_hide([*shown_back, *sent_secrets(auth)]),
            ),
            limit=narrowed(
                None if row["rate_per_s"] is None else RateLimit(row["rate_per_s"], row["rate_burst"]),
                row["allowed_per_min"],
            ),
            ordered=row["ordered"],
            blocked=blocked,
            asks_first=row["handshake"] and row["validated_at"] is None,
            auth_headers=static_headers(auth),
            oauth=auth if isinstance(auth, OAuth2Auth) else None,
            tls=tls,
        )


def _unreadable(row: asyncpg.Record) -> Endpoint:
    """It is matched, so that nothing for it is lost, and held."""
    return Endpoint(
        id=row["id"],
        tenant=row["tenant"],
        url=row["url"],
        patterns=tuple(row["event_types"]),
        timeout_s=row["timeout_s"],
        policy=DEFAULT_POLICY,
        recipe=Recipe({}, ()),
        limit=None,
        ordered=row["ordered"],
        blocked=UNREADABLE,
    )


def _with_auth(headers: Mapping[str, str], auth: Auth | None) -> Mapping[str, str]:
    """The headers of every request. Where both name one, which the API refuses, it is there once, as `auth` has it."""
    if auth is None:
        return headers
    name = auth_header(auth).lower()
    return {given: value for given, value in headers.items() if given.lower() != name} | static_headers(auth)


def _hex_header(signature: Signature) -> HexHeader | None:
    return HexHeader(signature.header, signature.prefix) if isinstance(signature, HmacSignature) else None


@lru_cache(maxsize=1024)
def _policy(text: bytes) -> RetryPolicy:
    """One object for each distinct policy: most of 100,000 subscriptions have the default one."""
    return _policies.validate_json(text)


@lru_cache(maxsize=1024)
def _signature(text: bytes) -> Signature:
    """As `_policy`: nearly all have one of a few."""
    return read_signature(orjson.loads(text))
