"""Admin keys: stored as a hash, found by their text, gone at once when revoked."""

import hashlib
import hmac

import pytest
from uuid_utils.compat import uuid7

from infra.store import api_keys
from infra.store.store import Store
from schemas.errors import InvalidInput


async def test_a_key_is_found_by_its_text_and_only_its_hash_is_stored(store: Store) -> None:
    async with store.transaction() as conn:
        key, row = await api_keys.create(conn, "ops")
        assert key.startswith("hh_")
        assert len(key) == 46
        assert await api_keys.find(conn, key) == row
        assert (row.name, key.startswith(row.prefix), len(row.prefix)) == ("ops", True, 10)
        stored = await conn.fetchrow("SELECT * FROM api_keys")
        assert stored is not None
        assert stored["sha256"] == hashlib.sha256(key.encode()).digest()
        assert key not in repr(dict(stored))
        assert key not in repr(row)


@pytest.mark.parametrize("text", ["", "hh_", "hh_" + "A" * 43, "xx_" + "A" * 43, "hh_" + "é" * 43, "hh_\x00", "\udcff"])
async def test_what_is_no_key_is_not_found(store: Store, text: str) -> None:
    async with store.transaction() as conn:
        await api_keys.create(conn, "ops")
        assert await api_keys.find(conn, text) is None


@pytest.mark.parametrize("name", ["", "a\x00b", "a\nb", "\udcff", "x" * 513])
async def test_a_name_that_is_no_text_is_refused_by_name(store: Store, name: str) -> None:
    async with store.transaction() as conn:
        with pytest.raises(InvalidInput, match="name"):
            await api_keys.create(conn, name)


async def test_every_key_is_another(store: Store) -> None:
    async with store.transaction() as conn:
        keys = {(await api_keys.create(conn, "same name"))[0] for _ in range(20)}
    assert len(keys) == 20


async def test_a_revoked_key_is_not_found_and_stays_in_the_list(store: Store) -> None:
    async with store.transaction() as conn:
        key, row = await api_keys.create(conn, "ops")
        other, _ = await api_keys.create(conn, "ci")
        revoked = await api_keys.revoke(conn, row.id)
        assert revoked is not None
        assert revoked.revoked_at is not None
        assert await api_keys.find(conn, key) is None
        assert await api_keys.find(conn, other) is not None
        assert await api_keys.revoke(conn, row.id) is None
        assert await api_keys.revoke(conn, uuid7()) is None
        page = await api_keys.list_page(conn, tenant=None, after=None, limit=10)
        assert [one.name for one in page.rows] == ["ci", "ops"]


async def test_a_look_up_sees_the_hash_of_a_key_alone_and_compares_it_in_constant_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return False  # what it says is what counts

    monkeypatch.setattr(hmac, "compare_digest", compare)
    async with store.transaction() as conn:
        key, _ = await api_keys.create(conn, "ops")
        asked: list[tuple[object, ...]] = []
        with conn.query_logger(lambda query: asked.append(tuple(query.args or ()))):
            assert await api_keys.find(conn, key) is None
    digest = hashlib.sha256(key.encode()).digest()
    assert asked == [(digest,)]
    assert compared == [(digest, digest)]
