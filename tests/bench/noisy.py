"""What a tenant's flood costs another tenant: 100,000 events for an endpoint that takes a second for each.

Admission is the one stage that tenants share: events are admitted in the order of the queue. So three things are
measured. How fast the flood is admitted, which is how long another tenant's events wait behind it; what those take
from there on, to the request being received, if they were published while some of the flood was not admitted, and come
with it in large transactions; and what they take when all of it waits for its endpoint, over what they take without.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from infra.broker.base import Outgoing, ToEvents
from schemas.ids import EVENT, public_id
from schemas.messages import Message
from tests.bench import figures
from tests.bench.installation import dispatchers, installation
from tests.bench.traffic import p, steady
from tests.support.postgres import Postgres, running_postgres
from tests.support.rabbit_server import running_server
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import System

FLOOD = 100_000
ROUNDS = 3
SECONDS = 40.0  # the flood is admitted in the first ten or twenty
PER_S = 50
_AT_ONCE = 5000


async def measure() -> figures.Figures:
    alone, amid, after, admitted_per_s, waits_s = [], [], [], [], []
    with running_server() as rabbit, running_postgres(durable=True) as postgres:
        for _ in range(ROUNDS):
            alone.append((await _quiet(postgres, rabbit.url, flood=0)).after_ms)
            quiet = await _quiet(postgres, rabbit.url, flood=FLOOD)
            amid.append(quiet.amid_ms)
            after.append(quiet.after_ms)
            waits_s.append(quiet.longest_wait_s)
            admitted_per_s.append(quiet.flood_per_s)
    return {
        "noisy_tenant.admitted_per_s": admitted_per_s,
        "noisy_tenant.longest_wait_s": waits_s,
        "noisy_tenant.alone_p99_ms": [p(99, one) for one in alone],
        "noisy_tenant.amid_p99_ms": [p(99, one) for one in amid],
        "noisy_tenant.p99_ms": [p(99, one) for one in after],
        "noisy_tenant.p99_ratio": figures.ratios([p(99, one) for one in after], [p(99, one) for one in alone]),
    }


@dataclass(frozen=True, slots=True)
class _Quiet:
    """The other tenant's way: from admission to request, amid the flood's admission and after it, and the longest wait
    for admission. And how many events of the flood were admitted a second."""

    amid_ms: Sequence[float]
    after_ms: Sequence[float]
    longest_wait_s: float
    flood_per_s: float


async def _quiet(postgres: Postgres, broker_url: str, *, flood: int) -> _Quiet:
    async with installation(postgres, broker_url) as system, Receiver() as receiver, system.api() as api:
        await api.subscribe(receiver.behave("/slow", Behaviour(delay_s=1)), tenant="noisy")
        await api.subscribe(receiver.url("/quiet"), tenant="quiet")
        await _publish_flood(system, flood)
        async with dispatchers(system, 3), system.publisher() as publisher:
            came = await steady(
                publisher, receiver, ["quiet"], path="/quiet", per_s=PER_S, seconds=SECONDS, tenant="quiet"
            )
        of_events = "SELECT id, extract(epoch FROM admitted_at)::float8 AS at FROM events WHERE tenant = $1 ORDER BY at"
        quiet = {public_id(EVENT, row["id"]): row["at"] for row in await system.fetch(of_events, "quiet")}
        noisy = [row["at"] for row in await system.fetch(of_events, "noisy")]
    begun, over = (noisy[0], noisy[-1]) if noisy else (0.0, 0.0)
    behind = [quiet[one.id] for one in came if one.published_at <= over]
    settled = max(behind, default=0.0)  # and what waited behind it is admitted, too
    return _Quiet(
        [(one.received_at - quiet[one.id]) * 1000 for one in came if one.published_at <= settled],
        [(one.received_at - quiet[one.id]) * 1000 for one in came if one.published_at > settled],
        max(quiet[one.id] - one.published_at for one in came),
        len(noisy) / (over - begun) if noisy else 0.0,
    )


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
