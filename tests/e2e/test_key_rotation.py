"""The encryption keys are changed without downtime: by the command, killed in its middle, beside a running fleet."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import asyncpg
from standardwebhooks.webhooks import Webhook

from infra.crypto import Vault, new_key
from infra.store.encryption import BATCH_ROWS
from schemas.ids import SUBSCRIPTION, parse_id
from tests.support.receivers import Receiver, Request
from tests.support.system import Api, System
from tests.support.waiting import eventually

COMMAND = Path(sys.executable).with_name("hookhare")
COPIES = 3 * BATCH_ROWS
LIMIT_S = 60
HOLD = """
SELECT id FROM subscriptions WHERE id = (SELECT id FROM subscriptions ORDER BY id OFFSET $1 LIMIT 1) FOR UPDATE
"""

# As many copies of a subscription, disabled so that nothing is sent for them.
COPY = """
INSERT INTO subscriptions (id, tenant, url, event_types, timeout_s, retry_policy, headers, secrets, version, state)
SELECT gen_random_uuid(), tenant, url, event_types, timeout_s, retry_policy, $2, secrets, version, 'disabled'
FROM subscriptions, generate_series(1, $3) WHERE id = $1
"""


async def rotate(system: System, keys: str) -> asyncio.subprocess.Process:
    """The command, begun."""
    return await asyncio.create_subprocess_exec(
        *(COMMAND, "keys", "rotate-encryption"),
        env=system.environment(encryption_keys=keys, database_timeout_s=LIMIT_S),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str]:
    async with asyncio.timeout(LIMIT_S):
        out, errors = await process.communicate()
    assert b"Traceback" not in errors, errors.decode()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def under(system: System, key: str) -> int:
    """How many subscriptions have their secrets under this key."""
    vault = Vault([key])
    return sum(vault.is_under_first_key(row["secrets"]) for row in await system.fetch("SELECT * FROM subscriptions"))


def verified(request: Request, subscription: dict[str, Any]) -> None:
    Webhook(subscription["secret"]).verify(request.body, dict(request.headers))
    assert request.headers["authorization"] == "Bearer hush"


async def test_rotation_is_resumed_after_a_kill_and_then_the_old_keys_are_not_needed(
    system: System, api: Api, receiver: Receiver
) -> None:
    first, older = new_key(), new_key()
    old = system.settings().encryption_keys
    assert old is not None
    keys = f"{first},{older},{old.get_secret_value()}"
    subscription = await api.subscribe(receiver.url("/hook"), headers={"Authorization": "Bearer hush"})
    key = parse_id(SUBSCRIPTION, subscription["id"])
    await system.fetch(COPY, key, Vault([older]).encrypt(b'{"X-A":"1"}'), COPIES)

    async with system.dispatcher(encryption_keys=keys), system.publisher() as publisher:
        # Somebody holds a row of the second batch: there it waits, and is killed.
        blocker = await asyncpg.connect(system.database_url)
        rotation = await rotate(system, keys)
        try:
            async with blocker.transaction():
                await blocker.fetchval(HOLD, BATCH_ROWS + 5)

                async def first_batch() -> bool:
                    return await under(system, first) == BATCH_ROWS

                await eventually(first_batch, deadline_s=LIMIT_S)
                rotation.kill()
                await rotation.wait()
            assert await under(system, first) == BATCH_ROWS
        finally:
            await blocker.close()
        await publisher.publish("order.created", {"amid": True})
        await system.settled({"delivered": 1})

        code, told = await ended(await rotate(system, keys))
        assert code == 0
        rest = COPIES + 1 - BATCH_ROWS
        assert told.startswith(f"{rest} encrypted anew, {BATCH_ROWS} under the first key already, 0 decrypted by none")
        assert await under(system, first) == COPIES + 1

    async with system.dispatcher(encryption_keys=first), system.publisher() as publisher:
        await publisher.publish("order.created", {"after": True})
        await system.settled({"delivered": 2})
    for request in await receiver.wait_for(2):
        verified(request, subscription)


async def test_what_none_of_the_keys_decrypts_is_named_and_fails_the_command(
    system: System, api: Api, receiver: Receiver
) -> None:
    subscription = await api.subscribe(receiver.url("/hook"))
    code, told = await ended(await rotate(system, new_key()))
    assert code == 1
    assert told == (
        f"decrypted by none of the keys: {subscription['id']}\n"
        "0 encrypted anew, 0 under the first key already, 1 decrypted by none of them\n"
    )
