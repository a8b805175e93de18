"""Rotation of the encryption keys: batch after batch, again and again, and beside changes."""

import asyncio
from dataclasses import replace
from uuid import UUID

import asyncpg
import pytest

from infra.crypto import Vault, new_key
from infra.store import encryption, subscriptions
from infra.store.encryption import BATCH_ROWS, COLUMNS, Rotated
from infra.store.store import Store
from infra.store.subscriptions import SubscriptionRow
from schemas.errors import SecretUnreadable
from tests.support import rows
from tests.support.waiting import eventually

FIRST, OLD, OLDER, LOST = new_key(), new_key(), new_key(), new_key()
KEYS = Vault([FIRST, OLD, OLDER])


async def rotated(store: Store, vault: Vault = KEYS) -> Rotated:
    total = Rotated()
    async for batch in encryption.rotate(store, vault):
        total += batch
    return total


async def add(conn: asyncpg.Connection, key: str, **columns: bytes | None) -> UUID:
    """A subscription whose every column says which one it is, under the key; or as `columns` say."""
    vault = Vault([key])
    sealed: dict[str, bytes | None] = {name: vault.encrypt(name.encode()) for name in COLUMNS}
    return (await rows.add_subscription(conn, **(sealed | columns))).id


async def opened(store: Store, key: UUID, vault: Vault) -> dict[str, str | None]:
    async with store.connection() as conn:
        row = await conn.fetchrow("SELECT * FROM subscriptions WHERE id = $1", key)
    assert row is not None
    return {name: None if row[name] is None else vault.decrypt(row[name]).decode() for name in COLUMNS}


async def test_every_column_of_every_row_ends_under_the_first_key(store: Store) -> None:
    number = 2 * BATCH_ROWS + 1
    async with store.transaction() as conn:
        keys = [await add(conn, (OLD, OLDER)[place % 2]) for place in range(number)]
        keys.append(await add(conn, OLD, headers=None, auth=None, tls=None))
        current = await add(conn, FIRST)
        await conn.execute("UPDATE subscriptions SET deleted_at = clock_timestamp() WHERE id = $1", keys[0])
        before = await conn.fetch("SELECT id, version, updated_at, mode FROM subscriptions ORDER BY id")
    assert await rotated(store) == Rotated(encrypted_anew=number + 1, under_first_key=1)
    alone = Vault([FIRST])
    for key in (*keys[:-1], current):
        assert await opened(store, key, alone) == {name: name for name in COLUMNS}
    assert await opened(store, keys[-1], alone) == {"secrets": "secrets", "headers": None, "auth": None, "tls": None}
    async with store.connection() as conn:
        assert await conn.fetch("SELECT id, version, updated_at, mode FROM subscriptions ORDER BY id") == before
        stored = await conn.fetch("SELECT * FROM subscriptions ORDER BY id")
    assert await rotated(store) == Rotated(under_first_key=number + 2)
    async with store.connection() as conn:
        assert await conn.fetch("SELECT * FROM subscriptions ORDER BY id") == stored  # to the last byte


async def test_one_old_column_of_a_row_is_enough(store: Store) -> None:
    async with store.transaction() as conn:
        keys = [await add(conn, FIRST, **{name: Vault([OLD]).encrypt(name.encode())}) for name in COLUMNS]
    assert await rotated(store) == Rotated(encrypted_anew=len(COLUMNS))
    for key in keys:
        assert await opened(store, key, Vault([FIRST])) == {name: name for name in COLUMNS}


@pytest.mark.parametrize(
    "damage", [Vault([LOST]).encrypt(b"x"), b"", b"no token"], ids=["of another key", "empty", "no token"]
)
async def test_what_no_key_decrypts_is_named_and_left_and_the_rest_is_encrypted_anew(
    store: Store, damage: bytes
) -> None:
    async with store.transaction() as conn:
        lost = await add(conn, OLD, headers=damage)
        also = await add(conn, FIRST, headers=damage)
        well = await add(conn, OLD)
    for anew in (1, 0):  # each time
        assert await rotated(store) == Rotated(anew, under_first_key=1 - anew, unreadable=(lost, also))
    async with store.connection() as conn:
        assert await conn.fetchval("SELECT headers FROM subscriptions WHERE id = $1", lost) == damage
        secrets = await conn.fetchval("SELECT secrets FROM subscriptions WHERE id = $1", lost)
    assert Vault([FIRST]).decrypt(secrets) == b"secrets"
    assert await opened(store, well, Vault([FIRST])) == {name: name for name in COLUMNS}


async def test_a_change_that_is_made_meanwhile_is_not_lost(store: Store) -> None:
    """It holds the row when the rotation comes to it, having read it before; by a process with the old keys, even."""
    async with store.transaction() as conn:
        key = await add(conn, OLD)
        other = await add(conn, OLD)
    async with store.transaction() as conn:
        row = await subscriptions.lock_for_change(conn, key)
        assert isinstance(row, SubscriptionRow)
        rotation = asyncio.create_task(rotated(store))

        async def waits() -> bool:
            async with store.connection() as another:
                return bool(
                    await another.fetchval(
                        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1 "
                        "AND datname = current_database()",
                        "%FROM subscriptions WHERE id = ANY%FOR NO KEY UPDATE%",
                    )
                )

        await eventually(waits)
        await subscriptions.save(conn, replace(row, headers=Vault([OLD, OLDER]).encrypt(b"patched"), auth=None))
    assert await rotation == Rotated(encrypted_anew=2)
    expected = {"secrets": "secrets", "headers": "patched", "auth": None, "tls": "tls"}
    assert await opened(store, key, Vault([FIRST])) == expected
    assert await opened(store, other, Vault([FIRST])) == {name: name for name in COLUMNS}


async def test_two_rotations_at_once_do_no_harm(store: Store) -> None:
    async with store.transaction() as conn:
        keys = [await add(conn, OLD) for _ in range(3 * BATCH_ROWS)]
    totals = await asyncio.gather(rotated(store), rotated(store))
    assert [one.unreadable for one in totals] == [(), ()]
    for key in keys:
        assert await opened(store, key, Vault([FIRST])) == {name: name for name in COLUMNS}


async def test_without_the_old_key_there_is_nothing_to_be_done(store: Store) -> None:
    async with store.transaction() as conn:
        key = await add(conn, OLD)
    assert await rotated(store, Vault([FIRST])) == Rotated(unreadable=(key,))
    with pytest.raises(SecretUnreadable):
        await opened(store, key, Vault([FIRST]))
    assert await rotated(store) == Rotated(encrypted_anew=1)  # once it is back
