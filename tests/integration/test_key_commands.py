"""`hookhare keys` over a real database: made, listed, rotated, revoked."""

import asyncio
import re

import pytest
from typer.testing import CliRunner, Result

from hookhare.cli import app
from infra.store import api_keys, audit
from infra.store.store import Store


@pytest.fixture(autouse=True)
def its_database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKHARE_DATABASE_URL", database_url)


async def run(*command: str, code: int = 0) -> Result:
    result = await asyncio.to_thread(CliRunner().invoke, app, ["keys", *command])
    assert result.exit_code == code, result.output
    return result


def key_id(result: Result) -> str:
    found = re.search(r"key_[0-9a-z]{26}", result.stderr)
    assert found is not None
    return found[0]


async def find(store: Store, key: str) -> api_keys.ApiKeyRow | None:
    async with store.connection() as conn:
        return await api_keys.find(conn, key.strip())


async def test_a_key_is_made_with_tenant_scopes_end_and_rate_and_an_admins_without(store: Store) -> None:
    options = "--tenant acme --scope events:read --scope events:write --expires-in-days 2 --requests-per-min 5"
    made = await find(store, (await run("create", "--name", "shop", *options.split())).stdout)
    assert made is not None
    assert (made.name, made.tenant, made.scopes, made.rate_per_min) == (
        "shop",
        "acme",
        ["events:read", "events:write"],
        5,
    )
    assert made.expires_at is not None
    assert (made.expires_at - made.created_at).total_seconds() == pytest.approx(172_800, abs=60)
    admins = await find(store, (await run("create")).stdout)
    assert admins is not None
    assert (admins.tenant, admins.scopes, admins.expires_at) == (None, ["*"], None)


async def test_the_list_shows_no_key_and_can_be_of_one_tenant() -> None:
    key = (await run("create", "--name", "shop", "--tenant", "acme")).stdout.strip()
    await run("create", "--name", "ops")
    listed = (await run("list")).stdout
    assert "shop" in listed
    assert "(admin)" in listed
    assert key[:10] in listed
    assert key[:11] not in listed
    assert "ops" not in (await run("list", "--tenant", "acme")).stdout


async def test_a_key_is_rotated_once_with_its_overlap(store: Store) -> None:
    made = await run("create", "--tenant", "acme", "--scope", "events:read")
    rotated = await run("rotate", key_id(made), "--overlap-s", "60")
    new, old = await find(store, rotated.stdout), await find(store, made.stdout)
    assert new is not None
    assert old is not None
    assert (new.tenant, new.scopes, new.expires_at) == ("acme", ["events:read"], None)
    assert (old.replaced_by, old.expires_at is not None) == (new.id, True)
    assert "was rotated already" in (await run("rotate", key_id(made), code=1)).stderr
    assert (await run("rotate", key_id(rotated), "--overlap-s", "0")).stdout.startswith("hh_")
    assert await find(store, rotated.stdout) is None


async def test_a_key_is_revoked_once(store: Store) -> None:
    made = await run("create")
    await run("revoke", key_id(made))
    assert await find(store, made.stdout) is None
    assert "revoked already" in (await run("revoke", key_id(made), code=1)).stderr
    await run("rotate", key_id(made), code=1)


async def test_what_the_commands_change_is_in_the_audit_log(store: Store) -> None:
    made = await run("create", "--name", "shop", "--tenant", "acme")
    rotated = await run("rotate", key_id(made), "--overlap-s", "60")
    await run("revoke", key_id(rotated))
    await run("revoke", key_id(rotated), code=1)
    async with store.connection() as conn:
        entries = (await audit.list_page(conn, audit.AuditFilter(), after=None, limit=10)).rows
    old, new = key_id(made), key_id(rotated)
    assert [(entry.action, entry.target) for entry in reversed(entries)] == [
        ("key.created", old),
        ("key.rotated", old),
        ("key.created", new),
        ("key.revoked", new),
    ]
    assert {(entry.tenant, entry.key_id, entry.address, entry.request_id) for entry in entries} == {
        ("acme", None, None, None)
    }
    revoked, created, changed, _ = entries
    assert revoked.before is not None
    assert revoked.after is not None
    assert (revoked.before["state"], revoked.after["state"]) == ("active", "revoked")
    assert created.before is None
    assert changed.after is not None
    assert changed.after["replaced_by"] == new
    told = repr([(entry.before, entry.after) for entry in entries])
    assert made.stdout.strip() not in told
    assert rotated.stdout.strip() not in told
