"""A message that kills whoever handles it, each time: it ends in the dead letters, and none of its neighbours does."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from infra.broker.base import SUSPECT_DELIVERY_COUNT, Broker, Outgoing, ToEvents
from schemas.messages import Message
from tests.support.accounting import Accounting
from tests.support.lethal import Fleet, dies_admitting, dies_reading, fleet
from tests.support.receivers import Receiver
from tests.support.system import System
from tests.support.waiting import eventually

LIMIT = 6  # times that a message may come back


@pytest.fixture(params=["rabbitmq", "postgres"])
def strict_system(request: pytest.FixtureRequest, database_url: str) -> System:
    """An installation with a small delivery limit, over each of the two brokers."""
    url = request.getfixturevalue("bare_rabbit_url") if request.param == "rabbitmq" else database_url
    return System(database_url, url, events_delivery_limit=LIMIT, broker_lease_s=1)


@pytest.mark.parametrize("prepare", [dies_reading, dies_admitting])
@pytest.mark.parametrize(("dispatchers", "lethal"), [(1, 1), (2, 1), (2, 2)])
async def test_it_is_over_its_delivery_limit_and_takes_no_neighbour_along(
    strict_system: System,
    receiver: Receiver,
    tmp_path: Path,
    prepare: Callable[[], None],
    dispatchers: int,
    lethal: int,
) -> None:
    """Neighbours before, between, behind, and some that come while it kills."""
    system, hook = strict_system, receiver.url("/hook")
    books = Accounting(system, [receiver])
    kills = [b'{"type": "order.created", "data": "lethal %d", "id": "lethal-%d"}' % (n, n) for n in range(lethal)]
    async with system.api() as api, system.broker() as broker:
        await api.subscribe(hook)
        await publish(broker, [neighbour(number) for number in range(15)])
        for number, body in enumerate(kills):
            books.buried("over_delivery_limit", body)
            await publish(broker, [Message(body), *(neighbour(20 + 10 * number + more) for more in range(10))])
        async with fleet(system, tmp_path / "fleet", books, prepare, dispatchers=dispatchers) as whole:
            await eventually(lambda: died(whole, 2), deadline_s=60)
            await publish(broker, [neighbour(100 + number) for number in range(15)])
            for number in (*range(15), *range(20, 20 + 10 * lethal), *range(100, 115)):
                books.published(f"neighbour-{number}", hook)
            await books.settled(deadline_s=120)
        await books.check()
        shown = await api.all("/v1/dead-letters")
    assert [one["kind"] for one in shown] == ["over_delivery_limit"] * lethal
    assert {"it may kill the dispatcher that handles it" in one["reason"] for one in shown} == {True}
    # It is handed out once more than it may come back, at most: where one of the fleet had it waiting and never read
    # it, or gave it back because another suspect came with it, that counts as well.
    assert SUSPECT_DELIVERY_COUNT <= whole.deaths <= lethal * (LIMIT + 1)


def neighbour(number: int) -> Message:
    return Message(b'{"type": "order.created", "data": {"n": %d}, "id": "neighbour-%d"}' % (number, number))


async def publish(broker: Broker, messages: Sequence[Message]) -> None:
    errors = await broker.publish_many([Outgoing(ToEvents("order.created"), one) for one in messages], timeout_s=10)
    assert set(errors) == {None}


async def died(whole: Fleet, times: int) -> bool:
    return whole.deaths >= times
