"""Keys of the API: `hh_` and 32 random bytes, of which only the SHA-256 is stored.

A plain hash is enough, and a slow one would only cost: there is nothing to guess in 256 random bits. A key that has
ended, revoked or expired, never comes back.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from infra.store import tables
from infra.store.locks import count_keys
from infra.store.outcomes import Refused
from infra.store.query import Page, column_list, equal, fetch_page
from schemas.errors import InvalidInput
from schemas.fields import source_fault
from schemas.scopes import EVERY, Scope, known

PREFIX: Final = "hh_"
MAX_LIVE_OF_TENANT: Final = 100  # or a tenant's key would multiply its rate limit without end
_RANDOM_BYTES: Final = 32
_SHOWN_CHARS: Final = 10  # of which 7 are random: enough to tell keys apart, nothing towards guessing one
_KEY_CHARS: Final = len(PREFIX) + 43  # 32 bytes in base64 without padding


@dataclass(frozen=True, slots=True)
class ApiKeyRow:
    """A key as it may be shown; `prefix` is its beginning."""

    id: UUID
    name: str
    prefix: str
    tenant: str | None  # None: an admin's, which sees every tenant
    scopes: list[str]  # as stored: names, or EVERY
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    rate_per_min: int | None  # None: what the installation sets
    replaced_by: UUID | None
    uses: int
    last_used_at: datetime | None

    @property
    def known_scopes(self) -> AbstractSet[Scope]:
        """What it may do, as far as this release knows of it."""
        return known(frozenset(self.scopes))

    def has_ended(self, now: datetime) -> bool:
        return self.revoked_at is not None or (self.expires_at is not None and self.expires_at <= now)


_COLUMNS = column_list(tables.api_keys, ApiKeyRow)
_LIVE = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())"

_INSERT = f"""
INSERT INTO api_keys (id, name, prefix, sha256, tenant, scopes, expires_at, rate_per_min)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
RETURNING {_COLUMNS}
"""  # noqa: S608 -- column names of our own table

_FIND = f"SELECT {_COLUMNS}, sha256 FROM api_keys WHERE sha256 = $1 AND {_LIVE}"  # noqa: S608

_COUNT_LIVE = f"SELECT count(*) FROM api_keys WHERE tenant = $1 AND {_LIVE}"  # noqa: S608

# In one order, whoever locks: two keys that rotate each other wait, and do not deadlock.
_LOCK = f"""
SELECT {_COLUMNS} FROM api_keys WHERE id = ANY($1::uuid[]) ORDER BY id FOR NO KEY UPDATE
"""  # noqa: S608 -- column names of our own table

_SAVE = f"""
UPDATE api_keys SET name = $2, scopes = $3, expires_at = $4, rate_per_min = $5 WHERE id = $1
RETURNING {_COLUMNS}
"""  # noqa: S608 -- column names of our own table

_REPLACE = f"""
UPDATE api_keys
SET replaced_by = $2, expires_at = least(expires_at, clock_timestamp() + make_interval(secs => $3)),
    revoked_at = CASE WHEN $3 = 0 THEN clock_timestamp() END
WHERE id = $1
RETURNING {_COLUMNS}
"""  # noqa: S608 -- column names of our own table

_REVOKE = f"""
UPDATE api_keys SET revoked_at = clock_timestamp() WHERE id = $1 AND revoked_at IS NULL
RETURNING {_COLUMNS}
"""  # noqa: S608 -- column names of our own table

_ADD_USES = """
WITH used AS (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::timestamptz[]) AS used (id, times, at)
), locked AS (
    SELECT id FROM api_keys WHERE id = ANY($1::uuid[]) ORDER BY id FOR NO KEY UPDATE
)
UPDATE api_keys SET uses = api_keys.uses + used.times, last_used_at = greatest(api_keys.last_used_at, used.at)
FROM used JOIN locked USING (id) WHERE api_keys.id = used.id
"""


async def create(
    conn: asyncpg.Connection,
    name: str,
    *,
    tenant: str | None = None,
    scopes: AbstractSet[str] = frozenset({EVERY}),
    expires_at: datetime | None = None,
    rate_per_min: int | None = None,
) -> tuple[str, ApiKeyRow]:
    """Make a key. Its text is returned this once and stored nowhere. Without `scopes` it has them all.

    Raises InvalidInput for a name that is no text.
    """
    if fault := source_fault(name):
        raise InvalidInput.of("name", fault)
    key = PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(_RANDOM_BYTES)).rstrip(b"=").decode()
    stored = (tenant, sorted(scopes), expires_at, rate_per_min)
    record = await conn.fetchrow(_INSERT, uuid7(), name, key[:_SHOWN_CHARS], digest(key), *stored)
    assert record is not None
    return key, ApiKeyRow(**record)


async def check_number(conn: asyncpg.Connection, tenant: str) -> Refused | None:
    """Whether a tenant may have one more key. Until the transaction ends, nobody else makes one for it.

    Take it before any lock on a row.
    """
    await count_keys(conn, tenant)
    if await conn.fetchval(_COUNT_LIVE, tenant) < MAX_LIVE_OF_TENANT:
        return None
    return Refused(f"the tenant has {MAX_LIVE_OF_TENANT} keys already; revoke one that is not used")


async def find(conn: asyncpg.Connection, key: str) -> ApiKeyRow | None:
    """The key with this text, unless it was revoked or has expired.

    It is looked up by its hash, so what the index gives away in time is of no use to whoever guesses.
    """
    if not is_key(key):
        return None
    hashed = digest(key)
    record = await conn.fetchrow(_FIND, hashed)
    if record is None:
        return None
    values = dict(record)
    return ApiKeyRow(**values) if hmac.compare_digest(values.pop("sha256"), hashed) else None


def is_key(text: str) -> bool:
    """Whether a text has the form of a key."""
    return len(text) == _KEY_CHARS and text.startswith(PREFIX) and text.isascii()


def digest(key: str) -> bytes:
    """What is stored of a key's text."""
    return hashlib.sha256(key.encode()).digest()


async def get(conn: asyncpg.Connection, key_id: UUID) -> ApiKeyRow | None:
    """A key, ended ones too."""
    record = await conn.fetchrow(f"SELECT {_COLUMNS} FROM api_keys WHERE id = $1", key_id)  # noqa: S608
    return None if record is None else ApiKeyRow(**record)


async def is_live(conn: asyncpg.Connection, key_id: UUID) -> bool:
    """Whether a key has not ended."""
    live = await conn.fetchval(f"SELECT true FROM api_keys WHERE id = $1 AND {_LIVE}", key_id)  # noqa: S608
    return live is not None


async def list_page(conn: asyncpg.Connection, *, tenant: str | None, after: UUID | None, limit: int) -> Page[ApiKeyRow]:
    """Keys, ended ones too; without a `tenant`, all there are."""
    table = tables.api_keys
    return await fetch_page(conn, table, ApiKeyRow, equal((table.c.tenant, tenant)), after=after, limit=limit)


async def lock(conn: asyncpg.Connection, key_ids: Collection[UUID]) -> dict[UUID, ApiKeyRow]:
    """Keep keys from being changed until this transaction ends; those that there are, as they are then."""
    return {record["id"]: ApiKeyRow(**record) for record in await conn.fetch(_LOCK, list(key_ids))}


async def save(conn: asyncpg.Connection, row: ApiKeyRow) -> ApiKeyRow:
    """Store what may be changed of a key that is locked."""
    record = await conn.fetchrow(_SAVE, row.id, row.name, sorted(row.scopes), row.expires_at, row.rate_per_min)
    assert record is not None
    return ApiKeyRow(**record)


async def rotate(conn: asyncpg.Connection, row: ApiKeyRow, *, overlap_s: int) -> tuple[str, ApiKeyRow, ApiKeyRow]:
    """Make a key with the rights of one that is locked: its text, its row, and the old one's, which ends after so long.

    The new one ends when the old one would have.
    """
    key, new = await create(
        conn,
        row.name,
        tenant=row.tenant,
        scopes=frozenset(row.scopes),
        expires_at=row.expires_at,
        rate_per_min=row.rate_per_min,
    )
    record = await conn.fetchrow(_REPLACE, row.id, new.id, overlap_s)
    assert record is not None
    return key, new, ApiKeyRow(**record)


async def revoke(conn: asyncpg.Connection, key_id: UUID) -> ApiKeyRow | None:
    """End a key, at once. None when there is no such key, or it was revoked before."""
    record = await conn.fetchrow(_REVOKE, key_id)
    return None if record is None else ApiKeyRow(**record)


async def add_uses(conn: asyncpg.Connection, uses: Mapping[UUID, tuple[int, datetime]]) -> None:
    """Count for each key how often it was used since the last time, and when last, in one statement."""
    times, moments = zip(*uses.values(), strict=True)
    await conn.execute(_ADD_USES, list(uses), list(times), list(moments))
