"""What a Python team writes today, measured against us: a full queue emptied by Celery workers, and by dispatchers.

The Celery task is in `celery_app.py`: late acks, an HMAC signature, a row for each attempt in the same PostgreSQL. Its
queue is Celery's default, a durable classic one; ours are quorum queues. Both send the same data to the same receiver,
which answers at once, or after 50 ms. Celery's rate is taken over the last 90 % of the POSTs, since its workers are not
warm before; ours as in `throughput`. CPU is that of the worker processes in that time.

Each round has every setup of both, and of each the fastest counts. Celery's are those that came out best of one to
three workers with 2 to 100 threads or processes each, on two cores. Processes never did; one setup of them is kept, for
machines with more cores. Workers log warnings only, as Celery does by default; dispatchers log every POST.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import psutil

from tests.bench import celery_app, figures
from tests.bench.cpu import cpu_s
from tests.bench.sink import Sink, sink
from tests.bench.throughput import Emptied, empty, private_node
from tests.support.postgres import Postgres, running_postgres
from tests.support.rabbit_server import PrivateNode
from tests.support.system import System
from tests.support.waiting import eventually

ROUNDS = 3
COUNT = 15_000
ENDPOINTS = 20
DISPATCHERS = (1, 2)
_TEXT = "x" * 900  # a body of 1 KiB or so
_DEADLINE_S = 180
_STOP_S = 60


@dataclass(frozen=True, slots=True)
class Setup:
    """Celery's workers, and how many processes or threads each of them has."""

    pool: str
    concurrency: int
    workers: int = 1


INSTANT = (Setup("prefork", 4), Setup("threads", 4, workers=2), Setup("threads", 8, workers=2))
SLOW = (Setup("threads", 64), Setup("threads", 32, workers=2), Setup("threads", 20, workers=3))


@dataclass(frozen=True, slots=True)
class Run:
    """Deliveries, by time and by CPU time of who made them."""

    per_s: float
    per_cpu_s: float


async def measure() -> figures.Figures:
    instant: list[tuple[Run, Emptied]] = []
    slow: list[tuple[Run, Emptied]] = []
    with private_node() as rabbit, running_postgres(durable=True) as postgres:
        for _ in range(ROUNDS):
            instant.append(await _round(postgres, rabbit, INSTANT, delay_ms=0))
            slow.append(await _round(postgres, rabbit, SLOW, delay_ms=50))
    celery, ours = ([one.per_s for one in runs] for runs in zip(*instant, strict=True))
    celery_slow, ours_slow = ([one.per_s for one in runs] for runs in zip(*slow, strict=True))
    return {
        "celery.instant_per_s": celery,
        "celery.slow_per_s": celery_slow,
        "celery.per_cpu_s": [one.per_cpu_s for one, _ in instant],
        "ours.instant_per_s": ours,
        "ours.slow_per_s": ours_slow,
        "ours.per_cpu_s": [one.per_cpu_s for _, one in instant],
        "ours_over_celery.instant": figures.ratios(ours, celery),
        "ours_over_celery.slow": figures.ratios(ours_slow, celery_slow),
    }


async def _round(
    postgres: Postgres, rabbit: PrivateNode, setups: Sequence[Setup], *, delay_ms: float
) -> tuple[Run, Emptied]:
    """The best of Celery, and the best of ours."""
    celery = [await _celery(postgres, rabbit.url, setup, delay_ms=delay_ms) for setup in setups]
    ours = [
        await empty(postgres, rabbit, rabbit.url, fan_out=1, fleet=fleet, types=ENDPOINTS, delay_ms=delay_ms)
        for fleet in DISPATCHERS
    ]
    return max(celery, key=lambda run: run.per_s), max(ours, key=lambda run: run.per_s)


async def _celery(postgres: Postgres, broker_url: str, setup: Setup, *, delay_ms: float) -> Run:
    database = await postgres.create_database(migrated=False)
    try:
        system = System(postgres.dsn(database), broker_url)
        for statement in celery_app.SCHEMA:
            await system.fetch(statement)
        async with sink(delay_ms=delay_ms) as target:
            await asyncio.to_thread(celery_app.publish, broker_url, _tasks(target))
            async with _workers(system, setup) as pids:
                run = await _emptied(target, pids, system)
    finally:
        await postgres.drop_database(database)
    return run


async def _emptied(target: Sink, pids: Sequence[int], system: System) -> Run:
    """What the processes do from when so many have come that they are warm, to when all are on record."""

    async def recorded() -> bool:
        return bool(await system.value(celery_app.DELIVERED) >= COUNT)

    await target.reached(COUNT // 10, deadline_s=_DEADLINE_S)
    began_s, already, before_s = monotonic(), await target.count(), sum(map(cpu_s, pids))
    await target.reached(COUNT, deadline_s=_DEADLINE_S)
    await eventually(recorded, lambda: system.value(celery_app.DELIVERED), deadline_s=_DEADLINE_S)
    took_s, used_s = monotonic() - began_s, sum(map(cpu_s, pids)) - before_s
    return Run((COUNT - already) / took_s, (COUNT - already) / used_s)


@asynccontextmanager
async def _workers(system: System, setup: Setup) -> AsyncIterator[Sequence[int]]:
    """Celery's workers, running; their process ids."""
    folder = Path(tempfile.mkdtemp(prefix="hookhare-bench-"))
    command = [
        *(sys.executable, "-m", "celery", "--app", celery_app.__name__, "--broker", system.broker_url, "worker"),
        *("--pool", setup.pool, "--concurrency", str(setup.concurrency), "--loglevel", "warning"),
        *("--without-gossip", "--without-mingle"),
    ]
    environment = {**os.environ, celery_app.DATABASE_URL: system.database_url}
    running: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(setup.workers):
            named = [*command, "--hostname", f"worker{number}@localhost"]
            with (folder / f"{number}.log").open("wb") as log:
                running.append(subprocess.Popen(named, env=environment, stdout=log, stderr=log))  # noqa: ASYNC220
        yield [one.pid for one in running]
    finally:
        for one in running:
            one.terminate()  # it ends its children
        for one in running:
            await asyncio.to_thread(_end, one)
        shutil.rmtree(folder)


def _end(worker: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a worker that was told to stop; one that does not is killed, with its children."""
    try:
        worker.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        children = psutil.Process(worker.pid).children(recursive=True)
        worker.kill()
        worker.wait()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def _tasks(target: Sink) -> Sequence[tuple[str, str, str]]:
    body = '{"type": "order.n%d", "timestamp": "2026-01-01T00:00:00Z", "data": {"text": "%s"}}'
    return [
        (f"msg_{number}", f"{target.url}/{number % ENDPOINTS}", body % (number % ENDPOINTS, _TEXT))
        for number in range(COUNT)
    ]


if __name__ == "__main__":
    figures.run(measure)
