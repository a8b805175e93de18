"""What one channel lives through that consumes in order.

A quorum queue hands its messages out in order, and takes back what a consumer had unacked when its channel closes, in
order, ready to be handed out before all others. What spoils it:

- Two consumers on a channel (as of `rabbit_session.py`) are handed messages in turn, and what they have comes back one
  after the other. Here it is one at any time.
- What comes back is put behind what came back before and was not handed out since (tried on 3.10): ten come back, one
  is handed out and comes back, and it is behind the nine. So the window is always as wide as it was: all that came back
  is handed out at once. Only where suspects are is it narrow; one that comes back yet another time loses its place
  then, by a window at most. It has killed three consumers, or they died over its neighbours.
- Another consumer that has messages in hand: what comes after them may not be handed out before they are back, which
  takes, with a connection that died without a word, until the broker misses its heartbeats. So it is waited until the
  queue has no consumer. `exclusive` would say it better, but quorum queues do not heed it (tried on 3.10), and a single
  active consumer is an argument of the queue, which could not be changed any more.

What is left is the moment between that look and beginning: another consumer in order that looks at the same moment, and
goes on after a stop that is longer than the fleet's liveness and shorter than the broker's patience.
"""

import asyncio
import logging
from typing import Final

from infra.broker.amqp_link import amqp_faults
from infra.broker.base import Received
from infra.broker.rabbit_session import Session
from schemas.errors import BrokerUnavailable

log = logging.getLogger(__name__)

_LOOK_S: Final = 0.2  # how often it is looked whether there is another consumer
_SAY_AFTER: Final = 50  # looks


class SessionInOrder(Session):
    """`narrow`: begin with one message at a time, until one is met that is no suspect."""

    narrow = False
    met_suspect = False  # so that the session after this one has to be narrow
    _first_innocent: Received | None = None

    async def _consume(self) -> None:
        await self._wait_until_alone()
        if self.narrow:
            await self._add_consumer(1)
            await self._until(lambda: self._first_innocent is not None)
            await self._cancel_consumers()
            assert self._first_innocent is not None
            self._ready.append(self._first_innocent)
            self._arrived.set()
            await self._until(lambda: not self._unacked)
        self._narrow = False
        await self._add_consumer(self._prefetch)
        await self._until(lambda: bool(self._suspects))
        self.met_suspect = True
        await self._until(lambda: len(self._unacked) == len(self._suspects))
        raise BrokerUnavailable("beginning anew, to hand out a suspect alone")

    def _arrive(self, received: Received, *, suspect: bool) -> None:
        if self._narrow and not suspect:
            # Kept back until its consumer is cancelled: were it acked before, the next one might be on its way to a
            # consumer that is no more, and the broker would take that back, and hand it out late.
            self._first_innocent = received
        elif not self._narrow and (suspect or self._suspects):
            self._suspects.append(received)  # what comes behind a suspect goes back with it
        else:
            self._ready.append(received)
            self._arrived.set()
        self._turn.set()

    async def _wait_until_alone(self) -> None:
        looks = 0
        while await self._others():
            looks += 1
            if looks % _SAY_AFTER == 0:
                log.warning("consuming %s in order: waiting for another consumer to end", self._queue.value)
            await asyncio.sleep(_LOOK_S)

    async def _others(self) -> int:
        with amqp_faults("looking for other consumers"):
            told = await self._channel.queue_declare(self._queue.value, passive=True, timeout=self._timeout_s)
        return told.consumer_count or 0
