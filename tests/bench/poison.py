"""How fast good events are delivered when every third message is poison, against good ones alone.

A queue is filled, a dispatcher in a process of its own empties it, and the deliveries of good events are timed from the
first to the last: RabbitMQ, PostgreSQL, dispatcher and receiver on this machine, over loopback.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from infra.broker.base import Outgoing, ToEvents
from schemas.messages import Message
from tests.bench import figures
from tests.support.postgres import Postgres, running_postgres
from tests.support.rabbit_server import running_server
from tests.support.rabbitmq import reset
from tests.support.receivers import Receiver
from tests.support.system import DispatcherProcess, System
from tests.support.waiting import eventually

GOOD = 3000
ROUNDS = 7


async def measure() -> figures.Figures:
    """Good events a second alone and amid poison, and the ratio of each two rounds."""
    alone, amid = [], []
    with running_server() as rabbit, running_postgres() as postgres:
        for _ in range(ROUNDS):
            alone.append(await _per_s(postgres, rabbit.url, poison=0))
            amid.append(await _per_s(postgres, rabbit.url, poison=GOOD // 2))
    return {
        "poison.good_alone_per_s": alone,
        "poison.good_amid_poison_per_s": amid,
        "poison.good_ratio": [with_poison / without for with_poison, without in zip(amid, alone, strict=True)],
    }


async def _per_s(postgres: Postgres, broker_url: str, *, poison: int) -> float:
    """Good events delivered a second, of a queue that has so much poison among them."""
    await reset(broker_url)
    database = await postgres.create_database()
    system = System(postgres.dsn(database), broker_url)
    folder = Path(tempfile.mkdtemp(prefix="hookhare-bench-"))
    try:
        async with Receiver() as receiver:
            async with system.api() as api, system.broker() as broker:
                await api.subscribe(receiver.url("/hook"))
                errors = await broker.publish_many(_stream(poison), timeout_s=60)
                assert set(errors) == {None}
            async with DispatcherProcess(system, folder / "dispatcher.log") as dispatcher:
                requests = await receiver.wait_for(GOOD, deadline_s=120)
                ended_s = monotonic()
                # All of it is paid for within a round: what is buried is also kept.
                await eventually(lambda: _kept(system, poison), deadline_s=120)
                await dispatcher.stop()
            return (GOOD - 1) / (ended_s - requests[0].at_s)
    finally:
        await postgres.drop_database(database)
        shutil.rmtree(folder)


def _stream(poison: int) -> Sequence[Outgoing]:
    messages = []
    for number in range(GOOD):
        body = b'{"type": "order.created", "id": "%d", "data": {"n": %d, "text": "%b"}}' % (number, number, b"x" * 500)
        messages.append(Message(body))
        if number % 2 and number // 2 < poison:
            messages.append(Message(b"poison %d %b" % (number, b"x" * 500)))
    return [Outgoing(ToEvents("order.created"), message) for message in messages]


async def _kept(system: System, poison: int) -> bool:
    return bool(await system.value("SELECT count(*) FROM dead_letters") == poison)


if __name__ == "__main__":
    figures.run(measure)
