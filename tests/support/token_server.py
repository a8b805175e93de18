"""A small OAuth 2 token server: client credentials, and tokens that it can tell from others, expire and revoke."""

import asyncio
import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote_plus

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Fetch:
    """One request for a token: how the client showed itself, and what it asked for."""

    client_auth: str  # "basic" or "post"
    client_id: str
    form: Mapping[str, str]
    status: int


@dataclass(slots=True)
class TokenServer:
    """Listens on `host`. `clients` are secrets by id, several at a time while one is replaced.

    It answers `answer` in place of a token, `status` with it, if that is set; with `padding` before its tokens; with
    `unended_bytes` of an answer that never ends, if that is set; and while `hold` is set, nothing until that event is.
    """

    clients: dict[str, set[str]] = field(default_factory=dict)
    host: str = "127.0.0.1"
    expires_in: object = 3600
    status: int = 200
    answer: object = None
    padding: str = ""
    unended_bytes: int = 0
    hold: asyncio.Event | None = None
    fetches: list[Fetch] = field(default_factory=list)
    waiting: int = 0
    port: int = 0
    _tokens: dict[str, Fetch] = field(default_factory=dict)
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/token"

    def auth(self, client_id: str, secret: str, **more: Any) -> dict[str, Any]:
        """The `auth` of a subscription that is this client."""
        return {"type": "oauth2", "token_url": self.url, "client_id": client_id, "client_secret": secret, **more}

    def admits(self, headers: Mapping[str, str]) -> bool:
        """Whether a request bears a token of ours that is not revoked."""
        kind, _, token = headers.get("authorization", "").partition(" ")
        return kind == "Bearer" and token in self._tokens

    def fetch_of(self, headers: Mapping[str, str]) -> Fetch:
        """The fetch that the token in these headers is from."""
        return self._tokens[headers["authorization"].removeprefix("Bearer ")]

    def revoke_all(self) -> None:
        self._tokens.clear()

    async def _grant(self, request: web.Request) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await request.post()).items()}
        kind, client_id, secret = _client(request, form)
        known = secret in self.clients.get(client_id, ()) and form.get("grant_type") == "client_credentials"
        status = self.status if known or self.answer is not None else 401
        fetch = Fetch(kind, client_id, form, status)
        self.fetches.append(fetch)
        if self.hold is not None:
            self.waiting += 1
            await self.hold.wait()
        if self.unended_bytes:
            return await self._begin_only(request)
        if self.answer is not None:
            return web.json_response(self.answer, status=status)
        if not known:
            return web.json_response({"error": "invalid_client"}, status=401)
        token = f"tok-{len(self.fetches)}"
        self._tokens[token] = fetch
        granted = {"access_token": token, "token_type": "bearer", "expires_in": self.expires_in}
        text = json.dumps({name: value for name, value in granted.items() if value is not None})
        return web.Response(text=self.padding + text, content_type="application/json")

    async def _begin_only(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for begin in range(0, self.unended_bytes, 1024):
            await response.write(b" " * min(1024, self.unended_bytes - begin))
            await asyncio.sleep(0)  # the head is read before the rest comes
        await asyncio.Event().wait()
        return response

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/token", self._grant)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, 0).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()


def _client(request: web.Request, form: Mapping[str, str]) -> tuple[str, str, str]:
    """How the client showed itself, its id and its secret, as RFC 6749 section 2.3.1 has it."""
    kind, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if kind != "Basic":
        return "post", form.get("client_id", ""), form.get("client_secret", "")
    client_id, _, secret = base64.b64decode(encoded).decode("ascii").partition(":")
    return "basic", unquote_plus(client_id), unquote_plus(secret)
