"""Keys of the API: `hh_` and 32 random bytes, of which only the SHA-256 is stored.

A plain hash is enough, and a slow one would only cost: there is nothing to guess in 256 random bits.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from infra.store import tables
from infra.store.query import column_list
from schemas.errors import InvalidInput
from schemas.fields import source_fault
from schemas.scopes import ALL_SCOPES, EVERY, Scope

PREFIX = "hh_"
_RANDOM_BYTES = 32
_SHOWN_CHARS = 10  # of which 7 are random: enough to tell keys apart, nothing towards guessing one
_KEY_CHARS = len(PREFIX) + 43  # 32 bytes in base64 without padding


@dataclass(frozen=True, slots=True)
class ApiKeyRow:
    """A key as it may be shown; `prefix` is its beginning."""

    id: UUID
    name: str
    prefix: str
    tenant: str | None  # None: an admin's, which sees every tenant
    scopes: AbstractSet[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    @classmethod
    def of(cls, record: asyncpg.Record) -> "ApiKeyRow":
        values = {name: record[name] for name in cls.__slots__}
        return cls(**values | {"scopes": _scopes(values["scopes"])})


_COLUMNS = column_list(tables.api_keys, ApiKeyRow)

_INSERT = f"""
INSERT INTO api_keys (id, name, prefix, sha256, tenant, scopes, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7)
RETURNING {_COLUMNS}
"""  # noqa: S608 -- column names of our own table

_FIND = f"""
SELECT {_COLUMNS}, sha256 FROM api_keys
WHERE sha256 = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())
"""  # noqa: S608 -- column names of our own table

_REVOKE = f"""
UPDATE api_keys SET revoked_at = clock_timestamp() WHERE id = $1 AND revoked_at IS NULL
RETURNING {_COLUMNS}
"""  # noqa: S608 -- column names of our own table


async def create(
    conn: asyncpg.Connection,
    name: str,
    *,
    tenant: str | None = None,
    scopes: AbstractSet[Scope] | None = None,
    expires_at: datetime | None = None,
) -> tuple[str, ApiKeyRow]:
    """Make a key. Its text is returned this once and stored nowhere. Without `scopes` it has them all.

    Raises InvalidInput for a name that is no text.
    """
    if fault := source_fault(name):
        raise InvalidInput.of("name", fault)
    key = PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(_RANDOM_BYTES)).rstrip(b"=").decode()
    stored = [EVERY] if scopes is None else sorted(scopes)
    record = await conn.fetchrow(_INSERT, uuid7(), name, key[:_SHOWN_CHARS], _digest(key), tenant, stored, expires_at)
    assert record is not None
    return key, ApiKeyRow.of(record)


async def find(conn: asyncpg.Connection, key: str) -> ApiKeyRow | None:
    """The key with this text, unless it was revoked or has expired.

    It is looked up by its hash, so what the index gives away in time is of no use to whoever guesses.
    """
    if len(key) != _KEY_CHARS or not key.startswith(PREFIX) or not key.isascii():
        return None
    digest = _digest(key)
    record = await conn.fetchrow(_FIND, digest)
    if record is None or not hmac.compare_digest(record["sha256"], digest):
        return None
    return ApiKeyRow.of(record)


async def list_all(conn: asyncpg.Connection) -> list[ApiKeyRow]:
    """Every key, oldest first, revoked ones too."""
    records = await conn.fetch(f"SELECT {_COLUMNS} FROM api_keys ORDER BY id")  # noqa: S608
    return [ApiKeyRow.of(record) for record in records]


async def revoke(conn: asyncpg.Connection, key_id: UUID) -> ApiKeyRow | None:
    """End a key, at once. None when there is no such key, or it has ended."""
    record = await conn.fetchrow(_REVOKE, key_id)
    return None if record is None else ApiKeyRow.of(record)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _scopes(stored: list[str]) -> AbstractSet[Scope]:
    """Those that this release knows; a later one may have stored more."""
    return ALL_SCOPES if EVERY in stored else frozenset(Scope(name) for name in stored if name in ALL_SCOPES)
