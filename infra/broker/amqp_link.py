"""Connections to RabbitMQ that come back.

A `Wire` is one connection. A `Link` keeps one of them up: it dials again, with growing pauses, whenever the wire is
lost.

aio-pika's robust connection is not used: it does not publish again what was not confirmed, loops for ever over a
redeclaration that fails, and hides when the connection changed, which is when acks of the old one lose their meaning.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeVar

import aio_pika
from aio_pika.connection import make_url
from aiormq.channel import Channel
from aiormq.connection import TransportFactory
from aiormq.exceptions import (
    AMQPConnectionError,
    AMQPError,
    AuthenticationError,
    ChannelInvalidStateError,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_random_exponential

from infra.broker.amqp_reader import MessageReader, Take
from schemas.errors import BrokerUnavailable, ConfigurationError

log = logging.getLogger(__name__)
_aiormq_log = logging.getLogger("aiormq.connection")

T = TypeVar("T")

# What aiormq raises when a connection or a channel is, or becomes, useless. RuntimeError: "… closed".
# StopAsyncIteration: the peer had hung up before it was heard for the first time.
AMQP_FAULTS: Final = (AMQPError, ChannelInvalidStateError, OSError, EOFError, RuntimeError, StopAsyncIteration)

_HEARTBEAT_S: Final = 10  # a broker that answers nothing is noticed within three of them
_POLITE_S: Final = 2.0  # for the handshake of closing; then the connection is cut
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0


class Cancellation:
    """Whether this task was asked to end since this was made.

    A CancelledError does not tell. When a connection dies of silence, or a channel is closed, aiormq cancels those who
    wait for it: that is a fault, and no request. And a request can come out of aiormq as a fault, or, up to Python
    3.11, whose wait_for swallows it when what it waits for comes in the same moment, not at all.
    """

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._before = self._task.cancelling() if self._task else 0

    @property
    def asked(self) -> bool:
        return self._task is not None and self._task.cancelling() > self._before


@contextmanager
def amqp_faults(doing: str) -> Iterator[None]:
    """aiormq's errors as BrokerUnavailable; a request to end as CancelledError, whatever aiormq made of it."""
    cancellation = Cancellation()
    try:
        yield
    except (asyncio.CancelledError, *AMQP_FAULTS) as error:  # a TimeoutError is an OSError
        if cancellation.asked:
            raise asyncio.CancelledError from error
        raise BrokerUnavailable(f"{doing}: {_told(error)}") from error
    if cancellation.asked:
        raise asyncio.CancelledError


def _told(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError | StopAsyncIteration):
        return "the connection was lost"
    return "RabbitMQ does not answer" if isinstance(error, TimeoutError) else reason(error)


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it is over; once more if something below it swallowed that."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=2 * _POLITE_S)


def reason(error: BaseException) -> str:
    """What went wrong, for a person. aiormq's errors have it in their arguments, and often nothing in their text."""
    text = str(error) or "; ".join(str(argument) for argument in error.args)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Transport(TransportFactory):
    """Opens the socket, and keeps hold of it: aiormq closes only politely, and a peer that is gone is not polite."""

    def __init__(self) -> None:
        self.reader: MessageReader | None = None
        self.socket: asyncio.WriteTransport | None = None

    async def create(self, url: Any, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        tls = await kwargs.pop("ssl_context_provider").get_context() if url.scheme == "amqps" else None
        kwargs.pop("ssl_context_provider", None)
        loop = asyncio.get_running_loop()
        reader = MessageReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            self.socket, _ = await loop.create_connection(lambda: protocol, url.host, url.port, ssl=tls, **kwargs)
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        self.reader = reader
        return reader, asyncio.StreamWriter(self.socket, protocol, reader, loop)


def _is_news(record: logging.LogRecord) -> bool:
    """aiormq logs each attempt at a connection that fails as an error. What comes of them is ours to tell, once."""
    return record.msg != "error when creating transport: %r"


class Wire(aio_pika.Connection):
    """One connection. Nothing about it comes back when it is lost."""

    def __init__(self, url: str, *, name: str) -> None:
        parsed = make_url(url)
        if "heartbeat" not in parsed.query:
            parsed = make_url(parsed, heartbeat=_HEARTBEAT_S)
        super().__init__(parsed, client_properties={"connection_name": name})
        self._transport = _Transport()
        self.kwargs["transport_factory"] = self._transport  # aio-pika passes these on to aiormq
        self._lost: asyncio.Future[Any] | None = None

    async def dial(self, *, timeout_s: float) -> None:
        """Connect. Raises BrokerUnavailable."""
        _aiormq_log.addFilter(_is_news)
        try:
            with amqp_faults(f"connecting to RabbitMQ at {self.url.host}:{self.url.port or 'its default port'}"):
                await self.connect(timeout=timeout_s)
        except BrokerUnavailable as error:
            self.abort()
            await self.close()
            if isinstance(error.__cause__, AuthenticationError | ProbableAuthenticationError):
                raise ConfigurationError(f"HOOKHARE_BROKER_URL: {error}") from error
            if isinstance(error.__cause__, InvalidFrameError):  # aiormq throws away what the broker says here
                raise BrokerUnavailable(
                    "RabbitMQ ends the connection while it is being opened: is there a virtual host "
                    f"{self.url.path[1:] or '/'!r}, and may the user use it?"
                ) from error
            raise
        except BaseException:
            self.abort()
            await self.close()
            raise
        assert self.transport is not None
        self._lost = self.transport.connection.closing

    async def open_channel(self, *, confirms: bool, timeout_s: float) -> Channel:
        """A channel of aiormq's. An unroutable publish on it raises: returning it is too easy to overlook."""
        if self.transport is None:
            raise ChannelInvalidStateError("the connection is closed")
        channel = await self.transport.connection.channel(
            publisher_confirms=confirms, on_return_raises=confirms, timeout=timeout_s
        )
        assert isinstance(channel, Channel)
        return channel

    def hand_over(self, channel: Channel, take: Take) -> None:
        """From now on give the messages that come on `channel` to `take`, which is quick and raises nothing."""
        assert self._transport.reader is not None
        self._transport.reader.hand_over(channel.number, take)

    @property
    def lost(self) -> bool:
        return self._lost is None or self._lost.done()

    @property
    def blocked(self) -> bool:
        """Whether the broker has said that it takes no publishes for now, because of an alarm.

        aiormq tells it only by not returning from `ready`: take a first step into it and see whether it would wait.
        """
        if self.transport is None:
            return False
        waiting = self.transport.ready().__await__()
        try:
            next(waiting)
        except StopIteration:
            return False
        waiting.close()
        return True

    async def wait_lost(self) -> BaseException | None:
        """Wait until it is lost; why, if there is a why."""
        assert self._lost is not None
        await asyncio.wait({self._lost})
        return None if self._lost.cancelled() else self._lost.exception()

    def abort(self) -> None:
        """Cut the connection, as a crash would."""
        if self._transport.socket is not None:
            self._transport.socket.abort()

    async def shut(self) -> None:
        """Close the connection; if the broker does not play its part of that, cut it. Never raises."""
        closing = asyncio.create_task(self.close())
        cut = asyncio.get_running_loop().call_later(_POLITE_S, self.abort)
        try:
            await asyncio.wait({closing}, timeout=2 * _POLITE_S)
        except asyncio.CancelledError:
            self.abort()
            await asyncio.wait({closing}, timeout=_POLITE_S)
            raise
        finally:
            cut.cancel()
            self.abort()


class Link(Generic[T]):
    """Keeps a connection up, and what `prepare` makes of each new one.

    `prepare` raises what aiormq raises, which is tried again, or ConfigurationError, which `open` raises. Once the
    link is open it tries again whatever happens, and says so in the log.
    """

    def __init__(self, url: str, *, name: str, prepare: Callable[[Wire], Awaitable[T]], timeout_s: float) -> None:
        self._url = url
        self._name = name
        self._prepare = prepare
        self._timeout_s = timeout_s
        self._wire: Wire | None = None
        self._made: T | None = None
        self._up = asyncio.Event()
        self._why = "not connected yet"
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect for the first time, within the timeout. Raises BrokerUnavailable or ConfigurationError."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(BrokerUnavailable),
            stop=stop_after_delay(self._timeout_s),
            wait=wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=1),
            reraise=True,
        ):
            with attempt:
                await self._connect()
        self.start()

    def start(self) -> None:
        """Keep it up from now on, in the background."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name=f"keep {self._name}")

    async def use(self) -> T:
        """What was prepared on the connection that is up; waits for one."""
        while (made := self.now) is None:
            self._up.clear()
            await self._up.wait()
        return made

    @property
    def now(self) -> T | None:
        """What was prepared on the connection that is up, if one is."""
        return None if self._wire is None or self._wire.lost else self._made

    @property
    def why(self) -> str:
        """Why there is no connection."""
        return self._why

    async def close(self) -> None:
        if self._keeper is not None:
            await end(self._keeper)
        await self._drop()

    async def _keep(self) -> None:
        while True:
            if self._wire is None:
                await self._reconnect()
            assert self._wire is not None
            cause = await self._wire.wait_lost()
            self._why = "the connection to RabbitMQ was lost" + (f" ({reason(cause)})" if cause else "")
            log.warning("%s: %s", self._name, self._why)
            await self._drop()

    async def _reconnect(self) -> None:
        async for attempt in AsyncRetrying(  # whatever was raised: nobody else would bring the connection back
            wait=wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S),
            before_sleep=self._note,
        ):
            with attempt:
                await self._connect()

    async def _connect(self) -> None:
        wire = Wire(self._url, name=self._name)
        await wire.dial(timeout_s=self._timeout_s)
        try:
            with amqp_faults("preparing the connection to RabbitMQ"):
                async with asyncio.timeout(self._timeout_s):
                    made = await self._prepare(wire)
        except BaseException:
            await wire.shut()
            raise
        self._wire, self._made = wire, made
        self._up.set()

    async def _drop(self) -> None:
        wire, self._wire, self._made = self._wire, None, None
        self._up.clear()
        if wire is not None:
            await wire.shut()

    def _note(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        self._why = str(error)
        level = logging.INFO if isinstance(error, BrokerUnavailable) else logging.ERROR
        told = isinstance(error, BrokerUnavailable | ConfigurationError)  # in full, by its message
        log.log(level, "%s: %s; trying again", self._name, error, exc_info=None if told else error)
