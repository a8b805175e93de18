"""The demo's three receivers. Each verifies every request with the official `standardwebhooks` library.

They answer as real ones do: 2xx for what they took, 401 for what they cannot verify, and an error when they are in
trouble.
"""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum

import msgspec
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError


class Trouble(Enum):
    """What is wrong with a receiver: how it answers."""

    NONE = "200"
    FLAKY = "503, 503, 200"  # for each event
    BROKEN = "500 until mended"


class _Body(msgspec.Struct):
    type: str
    timestamp: str
    data: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Taken:
    """A webhook that was verified and answered with 200."""

    webhook_id: str
    type: str
    data: bytes


@dataclass(slots=True)
class Receiver:
    """One receiver: what it subscribes to, what is wrong with it, and what came."""

    name: str
    patterns: Sequence[str]
    prefixes: tuple[str, ...]  # the same as `patterns`, said in another way: what the demo expects to arrive
    trouble: Trouble
    secret: str = field(default="", repr=False)
    url: str = ""
    taken: list[Taken] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)  # by webhook-id
    unverified: list[str] = field(default_factory=list)

    def wants(self, event_type: str) -> bool:
        """Whether an event of that type should arrive here."""
        return event_type.startswith(self.prefixes)

    async def handle(self, request: web.Request) -> web.Response:
        """Take a webhook as a careful receiver does: verify first, then answer."""
        body = await request.read()
        try:
            Webhook(self.secret).verify(body, dict(request.headers), json_parse=False)
            envelope = msgspec.json.decode(body, type=_Body)
        except (WebhookVerificationError, ValueError) as error:
            self.unverified.append(f"{type(error).__name__}: {error}")
            return web.Response(status=401)
        webhook_id = request.headers["webhook-id"]
        self.requests[webhook_id] += 1
        if self.trouble is Trouble.BROKEN:
            return web.Response(status=500, text="out of order")
        if self.trouble is Trouble.FLAKY and self.requests[webhook_id] <= 2:
            return web.Response(status=503, text="try again")
        self.taken.append(Taken(webhook_id, envelope.type, bytes(envelope.data)))
        return web.Response(status=200)


def three_receivers() -> tuple[Receiver, Receiver, Receiver]:
    """A healthy one that wants everything, a flaky one, and a broken one."""
    return (
        Receiver("healthy", ["#"], ("",), Trouble.NONE),
        Receiver("flaky", ["order.#"], ("order.",), Trouble.FLAKY),
        Receiver("broken", ["invoice.*", "customer.*"], ("invoice.", "customer."), Trouble.BROKEN),
    )


@asynccontextmanager
async def listening(receivers: Sequence[Receiver]) -> AsyncIterator[None]:
    """Serve every receiver on a free port of its own of this machine, for as long as the context is open."""
    runners: list[web.AppRunner] = []
    try:
        for receiver in receivers:
            application = web.Application(client_max_size=1 << 20)
            application.router.add_post("/webhooks", receiver.handle)
            runner = web.AppRunner(application, access_log=None)
            runners.append(runner)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/webhooks"
        yield
    finally:
        for runner in runners:
            await runner.cleanup()
