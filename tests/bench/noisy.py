"""What a tenant's flood costs another tenant: 100,000 events for an endpoint that takes a second for each.

Admission is the one stage that tenants share: events are admitted in the order of the queue. So two things are
measured. How fast the flood is admitted, which is how long another tenant's events wait behind it; and what those take
from there on, to the request being received, over what they take without a flood.
"""

from collections.abc import Sequence

from infra.broker.base import Outgoing, ToEvents
from schemas.ids import EVENT, public_id
from schemas.messages import Message
from tests.bench import figures
from tests.bench.installation import dispatchers, installation
from tests.bench.traffic import Arrival, p, steady
from tests.support.postgres import Postgres, running_postgres
from tests.support.rabbit_server import running_server
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import System

FLOOD = 100_000
ROUNDS = 3
SECONDS = 20.0
PER_S = 50
_AT_ONCE = 5000


async def measure() -> figures.Figures:
    alone, beside, admitted_per_s, waits_s = [], [], [], []
    with running_server() as rabbit, running_postgres() as postgres:
        for _ in range(ROUNDS):
            after_ms, _, _ = await _quiet(postgres, rabbit.url, flood=0)
            alone.append(after_ms)
            after_ms, wait_s, per_s = await _quiet(postgres, rabbit.url, flood=FLOOD)
            beside.append(after_ms)
            waits_s.append(wait_s)
            admitted_per_s.append(per_s)
    return {
        "noisy_tenant.admitted_per_s": admitted_per_s,
        "noisy_tenant.longest_wait_s": waits_s,
        "noisy_tenant.alone_p99_ms": [p(99, one) for one in alone],
        "noisy_tenant.p99_ms": [p(99, one) for one in beside],
        "noisy_tenant.p99_ratio": figures.ratios([p(99, one) for one in beside], [p(99, one) for one in alone]),
    }


async def _quiet(postgres: Postgres, broker_url: str, *, flood: int) -> tuple[list[float], float, float]:
    """Milliseconds from admission to request; the longest wait for admission, in seconds; events admitted a second."""
    async with installation(postgres, broker_url) as system, Receiver() as receiver, system.api() as api:
        await api.subscribe(receiver.behave("/slow", Behaviour(delay_s=1)), tenant="noisy")
        await api.subscribe(receiver.url("/quiet"), tenant="quiet")
        await _publish_flood(system, flood)
        async with dispatchers(system, 3), system.publisher() as publisher:
            came = await steady(
                publisher, receiver, ["quiet"], path="/quiet", per_s=PER_S, seconds=SECONDS, tenant="quiet"
            )
        admitted = await system.fetch(
            "SELECT id, extract(epoch FROM admitted_at)::float8 AS at FROM events WHERE tenant = 'quiet'"
        )
        speed = await system.value(
            """
            SELECT count(*) / extract(epoch FROM max(admitted_at) - min(admitted_at))::float8
            FROM events WHERE tenant = 'noisy' HAVING count(*) > 1
            """
        )
    after_ms, longest_s = _since(came, {public_id(EVENT, row["id"]): row["at"] for row in admitted})
    return after_ms, longest_s, speed or 0.0


def _since(came: Sequence[Arrival], admitted: dict[str, float]) -> tuple[list[float], float]:
    after_ms = [(one.received_at - admitted[one.id]) * 1000 for one in came]
    return after_ms, max(admitted[one.id] - one.published_at for one in came)


async def _publish_flood(system: System, count: int) -> None:
    async with system.broker() as broker:
        for start in range(0, count, _AT_ONCE):
            some = [
                Outgoing(
                    ToEvents("flood"),
                    Message(b'{"type": "flood", "tenant": "noisy", "id": "%d", "data": "%b"}' % (n, b"x" * 900)),
                )
                for n in range(start, start + _AT_ONCE)
            ]
            assert set(await broker.publish_many(some, timeout_s=60)) == {None}


if __name__ == "__main__":
    figures.run(measure)
