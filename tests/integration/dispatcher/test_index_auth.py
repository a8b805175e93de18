"""What the index makes of `auth` and `tls`: a header of the recipe, or what is got ready for each attempt."""

from typing import Any
from uuid import UUID

import orjson
import pytest

from dispatcher.index import UNDECRYPTABLE, UNREADABLE, Endpoint, SubscriptionIndex
from infra.crypto import Vault, new_key
from infra.store.store import Store
from tests.support.seed import Seed

OAUTH2 = {"type": "oauth2", "token_url": "https://id.test/t", "client_id": "c", "client_secret": "c4nary"}


async def compiled(index: SubscriptionIndex, store: Store, subscription: UUID) -> Endpoint:
    async with store.connection() as connection:
        await index.refresh(connection)
    endpoint = index.get(subscription)
    assert endpoint is not None
    return endpoint


def sealed(seed: Seed, value: object) -> bytes:
    return seed.vault.encrypt(orjson.dumps(value))


@pytest.mark.parametrize(
    ("auth", "sent"),
    [
        ({"type": "bearer", "token": "c4nary"}, {"X-A": "1", "Authorization": "Bearer c4nary"}),
        ({"type": "api_key", "header": "x-a", "value": "c4nary"}, {"authorization": "own", "x-a": "c4nary"}),
        (OAUTH2, {"X-A": "1"}),
    ],
)
async def test_a_header_is_there_once_and_as_auth_has_it(
    seed: Seed, index: SubscriptionIndex, store: Store, auth: dict[str, Any], sent: dict[str, str]
) -> None:
    headers = sealed(seed, {"X-A": "1", "authorization": "own"})
    subscription = await seed.subscription(headers=headers, auth=sealed(seed, auth))
    endpoint = await compiled(index, store, subscription)
    assert (endpoint.blocked, dict(endpoint.recipe.headers)) == (None, sent)
    assert (endpoint.oauth is not None, endpoint.tls) == (auth is OAUTH2, None)
    assert "c4nary" not in repr(endpoint)


async def test_a_row_that_nobody_foresaw_is_held_and_keeps_no_other_away(
    seed: Seed, index: SubscriptionIndex, store: Store
) -> None:
    """As a release may write it that knows more, or less, than this one."""
    strange = await seed.subscription(headers=sealed(seed, {"X-A": {"v": 1}}))
    other = await seed.subscription()
    assert (await compiled(index, store, strange)).blocked is not None
    assert (await compiled(index, store, other)).blocked is None
    async with store.connection() as connection:
        await connection.execute(
            "UPDATE subscriptions SET signature = '{}', version = version + 10 WHERE id = $1", other
        )
        await connection.execute("UPDATE subscription_version SET version = version + 10")
    assert (await compiled(index, store, other)).blocked == UNREADABLE
    assert [one.id for one in index.match("default", "order.created")] == sorted([strange, other])


@pytest.mark.parametrize("column", ["auth", "tls"])
@pytest.mark.parametrize("foreign", [True, False])
async def test_what_cannot_be_read_is_blocked(
    seed: Seed, index: SubscriptionIndex, store: Store, column: str, foreign: bool
) -> None:
    vault = Vault([new_key()]) if foreign else seed.vault
    subscription = await seed.subscription(**{column: vault.encrypt(b'{"type":"none"}')})
    assert (await compiled(index, store, subscription)).blocked == UNDECRYPTABLE
