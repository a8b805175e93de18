"""Rotation of the encryption keys: what is stored under another key than the first is encrypted anew, in batches.

Interrupted at any point it can be begun again: what is under the first key already is left alone, so nothing has to be
remembered of how far it had come. A batch is one short transaction that encrypts what its rows hold while it has them
locked, so a change of a subscription that is made meanwhile is never overwritten by what was there before it.

Dispatchers need not know: what is encrypted stays the same, and none of them keeps the encrypted form. So neither the
version nor the time of the last change moves.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg

from infra.crypto import Vault
from infra.store.store import Store
from schemas.errors import SecretUnreadable

# Every column that the vault encrypts; tests/unit/infra/test_encrypted_columns.py holds them to the tables.
COLUMNS: Final = ("secrets", "headers", "auth", "tls")
BATCH_ROWS: Final = 100  # locked for as long as it takes to encrypt them: some 20 ms

_NAMES: Final = ", ".join(COLUMNS)

# Of deleted subscriptions too: they keep an encrypted empty list.
_NEXT: Final = f"""
SELECT id, {_NAMES} FROM subscriptions WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT {BATCH_ROWS}
"""  # noqa: S608 -- column names of our own table

# In order of id, as everybody does who locks several.
_LOCK: Final = f"""
SELECT id, {_NAMES} FROM subscriptions WHERE id = ANY($1::uuid[]) ORDER BY id FOR NO KEY UPDATE
"""  # noqa: S608 -- column names of our own table

# $1 array of ids, then one for each column.
_STORE: Final = f"""
UPDATE subscriptions AS s SET {", ".join(f"{name} = new.{name}" for name in COLUMNS)}
FROM unnest($1::uuid[], {", ".join(f"${number}::bytea[]" for number in range(2, 2 + len(COLUMNS)))})
     AS new (id, {_NAMES})
WHERE s.id = new.id
"""  # noqa: S608 -- column names of our own table


@dataclass(frozen=True, slots=True)
class Rotated:
    """What became of so many subscriptions. The unreadable ones have something that no configured key decrypts; what
    else they have is encrypted anew all the same."""

    encrypted_anew: int = 0
    under_first_key: int = 0
    unreadable: tuple[UUID, ...] = ()

    def __add__(self, other: "Rotated") -> "Rotated":
        return Rotated(
            self.encrypted_anew + other.encrypted_anew,
            self.under_first_key + other.under_first_key,
            self.unreadable + other.unreadable,
        )


async def rotate(store: Store, vault: Vault) -> AsyncIterator[Rotated]:
    """Encrypt under the first key all that is not, and tell of each batch. Raises StoreUnavailable."""
    after: UUID | None = None
    while True:
        async with store.connection() as connection:
            rows = await connection.fetch(_NEXT, after)
        if not rows:
            return
        after = rows[-1]["id"]
        others = [row["id"] for row in rows if not _is_under_first_key(vault, row)]
        yield await _rotate_some(store, vault, others) + Rotated(under_first_key=len(rows) - len(others))


async def _rotate_some(store: Store, vault: Vault, ids: list[UUID]) -> Rotated:
    if not ids:
        return Rotated()
    changed: list[tuple[object, ...]] = []
    unreadable: list[UUID] = []
    async with store.transaction() as connection:
        rows = await connection.fetch(_LOCK, ids)
        for row in rows:
            values = [_anew(vault, row[name]) for name in COLUMNS]
            if _UNREADABLE in values:
                unreadable.append(row["id"])
            kept = [row[name] if value is _UNREADABLE else value for name, value in zip(COLUMNS, values, strict=True)]
            changed.append((row["id"], *kept))
        await connection.execute(_STORE, *map(list, zip(*changed, strict=True)))
    return Rotated(encrypted_anew=len(rows) - len(unreadable), unreadable=tuple(unreadable))


_UNREADABLE: Final = object()


def _anew(vault: Vault, stored: bytes | None) -> object:
    if stored is None or vault.is_under_first_key(stored):
        return stored
    try:
        return vault.encrypt_anew(stored)
    except SecretUnreadable:
        return _UNREADABLE


def _is_under_first_key(vault: Vault, row: asyncpg.Record) -> bool:
    return all(row[name] is None or vault.is_under_first_key(row[name]) for name in COLUMNS)
