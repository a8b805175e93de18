"""The development server's own receiver: it takes every webhook and prints a line for each.

So that a first subscription has somewhere to point to. It does not verify, because it is for looking: receivers that
act on what they get verify first (`hookhare.verify_webhook`).
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

_SHOWN_BYTES = 400
_FOR_BROWSERS = "The inbox of `hookhare dev`: webhooks that are POSTed here are printed in its terminal.\n"


@asynccontextmanager
async def open_inbox(port: int, show: Callable[[str], None]) -> AsyncIterator[str]:
    """Listen on that port of this machine, or a free one if it is taken, and give the URL to subscribe with."""

    async def take(request: web.Request) -> web.Response:
        body = await request.read()
        shown = body[:_SHOWN_BYTES].decode(errors="replace")
        more = " …" if len(body) > _SHOWN_BYTES else ""
        # The body is a stranger's text: repr-like escaping keeps it from steering the terminal.
        text = "".join(letter if letter.isprintable() else "·" for letter in shown)
        show(f"inbox: {request.headers.get('webhook-id', 'no webhook-id')} {text}{more}")
        return web.Response(status=204)

    async def tell(_: web.Request) -> web.Response:
        return web.Response(text=_FOR_BROWSERS)

    application = web.Application(client_max_size=1 << 21)
    application.router.add_post("/{anything:.*}", take)
    application.router.add_get("/{anything:.*}", tell)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
        except OSError:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/inbox"
    finally:
        await runner.cleanup()
