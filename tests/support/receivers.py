"""Endpoints that webhooks are sent to, well-behaved or failing on purpose; hostile ones are in `hostile.py`.

A `Receiver` records every request and answers as it is told to for the path. It runs in the loop of the test, or, by
`threaded_receiver`, in a thread of its own, for tests that block or that stop a loop.
"""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from types import TracebackType
from typing import Self

import pytest_asyncio
from aiohttp import web
from standardwebhooks.webhooks import Webhook, WebhookVerificationError


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came. `headers` have lower-case names; `at_s` is monotonic; `status` is what was answered.

    `all_headers` are those on the wire, in order: a name may be there twice.
    """

    path: str
    headers: Mapping[str, str]
    body: bytes
    at_s: float
    status: int
    verified: bool | None  # None: nobody asked for it
    all_headers: Sequence[tuple[str, str]] = ()
    method: str = "POST"

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]


@dataclass(slots=True)
class Behaviour:
    """How a path answers: `status`, but `fail_status` to the first `fail_first`, and then to a `fail_fraction`.

    The fraction is drawn from `seed`. `hold`, while it is set to an event, keeps every answer back until that is set.
    `most_in_flight` is how many requests waited for their answer at once, at most. An OPTIONS request is answered with
    `consent` as headers, and with 405 while that is None.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"ok"
    delay_s: float = 0.0
    fail_first: int = 0
    fail_fraction: float = 0.0
    fail_status: int = 503
    seed: int = 1
    secret: str | None = None  # whsec_…: verify with the official library, and answer 401 to what does not hold
    admits: Callable[[Mapping[str, str]], bool] | None = None  # by headers with lower-case names; 401 to the others
    hold: asyncio.Event | None = None
    consent: Mapping[str, str] | None = None
    seen: int = field(default=0, init=False)
    in_flight: int = field(default=0, init=False)
    most_in_flight: int = field(default=0, init=False)
    _chance: random.Random | None = field(default=None, init=False)

    def next_status(self) -> int:
        self.seen += 1
        if self._chance is None:
            self._chance = random.Random(self.seed)
        failing = self.seen <= self.fail_first or self._chance.random() < self.fail_fraction
        return self.fail_status if failing else self.status

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request while its answer is kept back."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1


class Receiver:
    """An HTTP server on 127.0.0.1. `behave` says how a path answers; `requests` is all that came, in order."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.requests: list[Request] = []
        self.port = 0
        self._default = behaviour or Behaviour()
        self._behaviours: dict[str, Behaviour] = {}
        self._runner: web.AppRunner | None = None

    def behave(self, path: str, behaviour: Behaviour) -> str:
        """Answer `path` like that from now on; returns its URL."""
        self._behaviours[path] = behaviour
        return self.url(path)

    def behaviour(self, path: str) -> Behaviour:
        """How `path` answers now."""
        return self._behaviours.get(path, self._default)

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def to(self, path: str) -> list[Request]:
        """What came to `path`."""
        return [one for one in self.requests if one.path == path]

    async def start(self) -> None:
        """Listen: at first on a free port, after `stop` on the same one."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Refuse connections from now on, and cut those that there are."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def quiet(self) -> None:
        """Wait until nobody is connected: what a process that died just now had sent has come."""
        assert self._runner is not None
        assert self._runner.server is not None
        deadline = monotonic() + 10
        while self._runner.server.connections:
            assert monotonic() < deadline, "somebody is still connected"
            await asyncio.sleep(0.005)

    async def wait_for(self, count: int, *, path: str | None = None, deadline_s: float = 10) -> list[Request]:
        """Wait until `count` requests (to `path`) have come, and return them all. AssertionError at the deadline."""
        return await self.wait_until(lambda came: len(came) >= count, path=path, deadline_s=deadline_s, what=f"{count}")

    async def wait_until(
        self,
        enough: Callable[[list[Request]], bool],
        *,
        path: str | None = None,
        deadline_s: float = 10,
        what: str = "enough",
    ) -> list[Request]:
        """Wait until `enough(requests)`."""

        def came() -> list[Request]:
            return list(self.requests) if path is None else self.to(path)

        # Looked at again and again, because the receiver may run in another thread.
        deadline = monotonic() + deadline_s
        while not enough(came()):
            assert monotonic() < deadline, f"{len(came())} requests came within {deadline_s} s, wanted {what}"
            await asyncio.sleep(0.005)
        return came()

    async def _answer(self, request: web.Request) -> web.Response:
        at_s = monotonic()
        body = await request.read()
        behaviour = self.behaviour(request.path)
        if request.method == "OPTIONS":
            return await self._consent(request, behaviour, at_s)
        verified = None if behaviour.secret is None else _holds(behaviour.secret, request.headers, body)
        headers = {name.lower(): value for name, value in request.headers.items()}
        pairs = list(request.headers.items())
        admitted = behaviour.admits is None or behaviour.admits(headers)
        status = behaviour.next_status() if verified is not False and admitted else 401
        self.requests.append(Request(request.path, headers, body, at_s, status, verified, pairs))
        with behaviour.answering():
            if behaviour.delay_s:
                await asyncio.sleep(behaviour.delay_s)
            if behaviour.hold is not None:
                await behaviour.hold.wait()
        return web.Response(status=status, body=behaviour.body, headers=dict(behaviour.headers))

    async def _consent(self, request: web.Request, behaviour: Behaviour, at_s: float) -> web.Response:
        status = 405 if behaviour.consent is None else 200
        headers = {name.lower(): value for name, value in request.headers.items()}
        if behaviour.admits is not None and not behaviour.admits(headers):
            status = 401
        self.requests.append(Request(request.path, headers, b"", at_s, status, None, method="OPTIONS"))
        with behaviour.answering():
            if behaviour.hold is not None:
                await behaviour.hold.wait()
        return web.Response(status=status, headers={"Allow": "POST", **(behaviour.consent or {})})

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def _holds(secret: str, headers: Mapping[str, str], body: bytes) -> bool:
    try:
        Webhook(secret).verify(body, {name.lower(): value for name, value in headers.items()})
    except (WebhookVerificationError, ValueError):  # ValueError: its own, on a malformed header
        return False
    return True


@contextmanager
def threaded_receiver(behaviour: Behaviour | None = None) -> Iterator[Receiver]:
    """A receiver in a thread and a loop of its own, open for as long as the context is."""
    receiver = Receiver(behaviour)
    listening, closing = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with receiver:
            listening.set()
            await closing.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="receiver", daemon=True)
    thread.start()
    assert listening.wait(10), "the receiver does not listen"
    try:
        yield receiver
    finally:
        loop.call_soon_threadsafe(closing.set)
        thread.join(10)
        loop.close()


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that answers 200 unless it is told otherwise."""
    async with Receiver() as one:
        yield one
