"""Plays a schedule over an installation: every fault has an end, also when the soak is interrupted."""

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Final, assert_never

import aio_pika

from infra.broker.base import Broker, Outgoing, ToEvents
from infra.broker.ladder import RUNGS_MS
from infra.broker.topology import rung_queue
from schemas.errors import BrokerError
from schemas.messages import Message
from tests.soak.chronicle import Chronicle, Kind
from tests.soak.endpoints import Endpoints
from tests.soak.fleet import Armed, Fleet
from tests.soak.installation import Installation
from tests.soak.operators import Operators
from tests.soak.publishing import Publishing
from tests.soak.schedule import (
    Alarm,
    Burst,
    Cut,
    Drain,
    Endpoint,
    Fault,
    Kill,
    KillAt,
    Operator,
    Pause,
    PauseAt,
    Poison,
    Restart,
    Stall,
    Timed,
    Trouble,
    Wipe,
    Wire,
)
from tests.support.proxy import Direction
from tests.support.rabbitmq import settle

_DATABASE_LAG_S: Final = 1.0  # of this process, whose proxies every statement goes through


@dataclass(slots=True, eq=False)
class Player:
    """`poison` is the book of unreadable messages: whether each was confirmed."""

    installation: Installation
    fleet: Fleet
    endpoints: Endpoints
    operators: Operators
    publishing: Publishing
    broker: Broker
    chronicle: Chronicle
    poison: dict[bytes, bool] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    async def play(self, faults: Sequence[Timed]) -> None:
        """Return when the last fault is over."""
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        async with asyncio.TaskGroup() as playing:
            for one in faults:
                await asyncio.sleep(max(0.0, begun_s + one.at_s - loop.time()))
                playing.create_task(self._play(one.fault))

    async def watch(self) -> None:
        """Notes when this process itself stood still: its proxies did then, too."""
        loop = asyncio.get_running_loop()
        while True:
            before_s = loop.time()
            await asyncio.sleep(0.1)
            late_s = loop.time() - before_s - 0.1
            if late_s > _DATABASE_LAG_S:
                one = self.chronicle.note(f"  this process stood still for {late_s:.1f} s", Kind.SILENT)
                one.begun_at = time.time() - late_s

    async def _play(self, fault: Fault) -> None:
        match fault:
            case Stall():
                await self._stall(fault)
            case Restart():
                await self._restart(fault)
            case Alarm():
                await self._alarm(fault)
            case Cut(wire):
                self.chronicle.note(str(fault), _kind(wire))
                self._cut(fault)
            case _:
                self.chronicle.note(str(fault))
                await self._play_other(fault)

    async def _play_other(
        self, fault: Kill | KillAt | Pause | PauseAt | Drain | Wipe | Poison | Burst | Endpoint | Operator
    ) -> None:
        match fault:
            case Kill(slot):
                self.fleet.kill(slot)
            case KillAt(slot, point):
                self.fleet.kill(slot, Armed(point))
            case Pause(slot, for_s):
                await self.fleet.pause(slot, for_s)
            case PauseAt(slot, point, for_s):
                self.fleet.kill(slot, Armed(point, for_s))
            case Drain(slot):
                self.fleet.drain(slot)
            case Wipe():
                await self._wipe()
            case Poison(count):
                for _ in range(count):
                    await self._poison()
            case Burst(count):
                self.publishing.publish(count)
            case Endpoint(how, for_s):
                await self._trouble(how, for_s)
            case Operator(does):
                await self.operators.act(does)
            case _:
                assert_never(fault)

    def _cut(self, fault: Cut) -> None:
        wire = self.installation.wires[fault.wire]
        if fault.direction is None:
            wire.cut()
        else:
            wire.cut_after(fault.after_bytes, fault.direction)

    async def _stall(self, fault: Stall) -> None:
        wire = self.installation.wires[fault.wire]
        with self.chronicle.during(str(fault), _kind(fault.wire)), ExitStack() as stack:
            stack.callback(wire.resume)
            wire.stall(*([fault.direction] if fault.direction else Direction))
            await asyncio.sleep(fault.for_s)

    async def _restart(self, fault: Restart) -> None:
        server = self.installation.rabbit if fault.server is Wire.BROKER else self.installation.postgres
        assert server is not None
        async with self.installation.locks[fault.server]:
            if fault.killed and server is self.installation.rabbit:
                await asyncio.to_thread(settle, self.installation.rabbit)
            with self.chronicle.during(str(fault), _kind(fault.server)):
                await asyncio.to_thread(server.kill if fault.killed else server.stop)
                await asyncio.sleep(fault.down_s)
                await asyncio.to_thread(server.start)

    async def _alarm(self, fault: Alarm) -> None:
        rabbit = self.installation.rabbit
        assert rabbit is not None
        async with self.installation.locks[Wire.BROKER]:
            with self.chronicle.during(str(fault)):
                await asyncio.to_thread(rabbit.ctl, "set_vm_memory_high_watermark", "0.00001")
                await asyncio.sleep(fault.for_s)
                await asyncio.to_thread(rabbit.ctl, "set_vm_memory_high_watermark", "0.4")

    async def _wipe(self) -> None:
        if self.installation.rabbit is None:
            with suppress(OSError):
                await self.installation.direct.fetch("DELETE FROM queue_messages WHERE queue = 'hookhare.work'")
            return
        async with (
            self.installation.locks[Wire.BROKER],
            await aio_pika.connect(self.installation.direct.broker_url) as connection,
        ):
            channel = await connection.channel()
            for queue in (*map(rung_queue, RUNGS_MS), "hookhare.work"):  # so that nothing expires into no queue
                await channel.queue_delete(queue)

    async def _poison(self) -> None:
        body = b"poison %d" % next(self._numbers)
        self.poison[body] = False
        with suppress(BrokerError):
            await self.broker.publish(Outgoing(ToEvents("order.created"), Message(body)), timeout_s=5)
            self.poison[body] = True

    async def _trouble(self, how: Trouble, for_s: float) -> None:
        match how:
            case Trouble.HANGS:
                await self.endpoints.hang("/hanging", for_s)
            case Trouble.REFUSES:
                await self.endpoints.refuse(for_s)
            case Trouble.GONE:
                await self.operators.gone(for_s)
            case _:
                assert_never(how)


def _kind(wire: Wire) -> Kind:
    return Kind.SILENT if wire is Wire.DATABASE else Kind.OTHER
