"""Advisory locks: what they are numbered, what each of them stands for, and who waits for whom.

All are held to the end of the transaction that takes them, so a dead process cannot keep one.
"""

from enum import IntEnum

import asyncpg

_KEYS_OF_TENANT = 0x6B65_7973  # "keys": the first half of a lock whose second is the hash of a tenant's name
_FAMILY = 0x686F_6F6B << 32  # "hook": keeps clear of other users of the same database


class Lock(IntEnum):
    """The locks there are. The numbers are part of the protocol between releases: never reuse one."""

    # Shared by every admission until it commits, exclusive for every change of a subscription. So an admission
    # that read version v commits before version v + 1 exists, and an event published after the answer to the change
    # sees the change.
    SUBSCRIPTION_CHANGES = _FAMILY | 1
    # Held while the schema is brought up to date.
    MIGRATE = _FAMILY | 2
    # Held by the one process that makes and drops partitions.
    MAINTENANCE = _FAMILY | 3
    # Held by the one dispatcher that reconciles.
    RECONCILE = _FAMILY | 4


async def take(conn: asyncpg.Connection, lock: Lock) -> None:
    """Wait for a lock, and hold it until the transaction ends."""
    await conn.execute("SELECT pg_advisory_xact_lock($1)", lock.value)


async def try_take(conn: asyncpg.Connection, lock: Lock) -> bool:
    """Take a lock if nobody holds it; False without waiting if somebody does."""
    taken = await conn.fetchval("SELECT pg_try_advisory_xact_lock($1)", lock.value)
    return bool(taken)


async def share_subscriptions(conn: asyncpg.Connection) -> None:
    """Keep subscriptions from changing until this transaction ends.

    Read the version in a statement of its own after this one: a statement that took the lock and read the version
    at once would read it as of before it waited.
    """
    await conn.execute("SELECT pg_advisory_xact_lock_shared($1)", Lock.SUBSCRIPTION_CHANGES.value)


async def change_subscriptions(conn: asyncpg.Connection) -> int:
    """Wait for every admission under way, keep further ones back, and return the new version.

    Take it first in the transaction: whoever holds it shared already and then asks for this one deadlocks with the
    next one that does the same.
    """
    await take(conn, Lock.SUBSCRIPTION_CHANGES)
    version = await conn.fetchval("UPDATE subscription_version SET version = version + 1 RETURNING version")
    return int(version)


async def count_keys(conn: asyncpg.Connection, tenant: str) -> None:
    """Keep others from making keys for a tenant until this transaction ends. Taken before any lock on a row."""
    await conn.execute("SELECT pg_advisory_xact_lock($1, hashtext($2))", _KEYS_OF_TENANT, tenant)
