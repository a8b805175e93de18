"""Every subscription, compiled, in memory: what an event matches, and how each endpoint is reached.

The version in the database says whether this is current. Admission asks inside its own transaction, where the version
cannot move (`share_subscriptions`), so an event published after a subscription's 201 reaches it, always.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from uuid import UUID

import asyncpg
import orjson
import structlog
from pydantic import TypeAdapter

from dispatcher.core.credentials import static_headers
from dispatcher.core.filter import Facts, Filter
from dispatcher.core.pace import RateLimit, narrowed
from dispatcher.core.recipe import recipe_of
from dispatcher.core.request import Content, Recipe
from dispatcher.core.topics import TopicIndex
from infra.crypto import Vault
from schemas.destination_auth import Auth, OAuth2Auth, Tls, read_auth, read_tls
from schemas.errors import SecretUnreadable
from schemas.filters import read_filter
from schemas.formats import Format, Signature, read_signature
from schemas.subscription_headers import Header, decode_headers
from schemas.subscriptions import DEFAULT_POLICY, RetryPolicy, Secret, State, decode_secrets, signing

log = structlog.get_logger(__name__)

_CHANGED = """
SELECT id, tenant, url, event_types, filter, state, timeout_s, retry_policy, rate_per_s, rate_burst, ordered, headers,
       secrets, format, signature, auth, tls, handshake, validated_at, allowed_per_min, deleted_at, version
FROM subscriptions WHERE version > $1 AND ($1 > 0 OR deleted_at IS NULL) ORDER BY version
"""
_VERSION = "SELECT version FROM subscription_version"
_ROWS_AT_ONCE = 100  # compiled before others may run: 100,000 would keep the heartbeat waiting for 10 s (measured)
_FILTERS_AT_ONCE = 50  # before others may run: 0.2 ms if they are simple, 0.5 s if they are the worst (measured)
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
    filter: Filter | None = None  # None: every event of its types


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
        """Every endpoint of the tenant that wants this type and is not disabled, in order of id; its filter apart."""
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
        secrets: Sequence[Secret] = ()
        headers: Mapping[str, Header] = {}
        signature = _signature(orjson.dumps(row["signature"]))
        auth: Auth | None = None
        tls: Tls | None = None
        try:
            secrets = decode_secrets(self._vault.decrypt(row["secrets"]))
            if not any(one.expires_at is None for one in signing(secrets, signature)):
                blocked = blocked or UNSIGNED
            if row["headers"] is not None:
                headers = decode_headers(self._vault.decrypt(row["headers"]))
            auth = None if row["auth"] is None else read_auth(self._vault.decrypt(row["auth"]))
            tls = None if row["tls"] is None else read_tls(self._vault.decrypt(row["tls"]))
        except SecretUnreadable:
            blocked = blocked or UNDECRYPTABLE
            log.warning("subscription.undecryptable", subscription=str(row["id"]))
        return Endpoint(
            id=row["id"],
            tenant=row["tenant"],
            url=row["url"],
            patterns=tuple(row["event_types"]),
            timeout_s=row["timeout_s"],
            policy=_policy(orjson.dumps(row["retry_policy"])),
            recipe=recipe_of(
                secrets=secrets,
                signature=signature,
                format=Format(row["format"]),
                headers=headers,
                auth=auth,
                origin=self._origin if row["handshake"] else None,
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
            filter=_filter(row),
        )


async def wanting(endpoints: Iterable[Endpoint], tenant: str, content: Content) -> list[Endpoint]:
    """Those whose filter such an event passes. Its data is parsed for the first filter of them, and for no other."""
    found = []
    filters = 0
    facts = None  # not kept: what is parsed takes many times the memory of its text
    for endpoint in endpoints:
        if endpoint.filter is not None:
            facts = facts or Facts(tenant, content)
            if filters % _FILTERS_AT_ONCE == 0:
                await asyncio.sleep(0)
            filters += 1
            if not endpoint.filter.matches(facts):
                continue
        found.append(endpoint)
    return found


def _unreadable(row: asyncpg.Record) -> Endpoint:
    """It is matched, so that nothing for it is lost, and held; but nothing that its filter keeps out."""
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
        filter=_filter(row),
    )


def _filter(row: asyncpg.Record) -> Filter | None:
    if row["filter"] is None:
        return None
    try:
        return Filter(read_filter(row["filter"]))
    except Exception as error:  # noqa: BLE001 - of a release that knows more, say; who filtered is sent nothing unasked
        log.error(  # noqa: TRY400
            "subscription.filter_unreadable", subscription=str(row["id"]), error=f"{type(error).__name__}: {error}"
        )
        return Filter(None)


@lru_cache(maxsize=1024)
def _policy(text: bytes) -> RetryPolicy:
    """One object for each distinct policy: most of 100,000 subscriptions have the default one."""
    return _policies.validate_json(text)


@lru_cache(maxsize=1024)
def _signature(text: bytes) -> Signature:
    """As `_policy`: nearly all have one of a few."""
    return read_signature(orjson.loads(text))
