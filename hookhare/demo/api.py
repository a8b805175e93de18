"""The demo's view of the HTTP API: the calls that anybody could make with curl."""

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

_TIMEOUT_S = 15
_PAGE = 100


class UnexpectedAnswer(Exception):
    """The API answered something else than the demo counts on."""


class Api:
    """Calls to the API under `/v1`, with the admin key."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def call(self, method: str, path: str, body: object = None, **query: str) -> Any:
        """The parsed answer of a call with a JSON body. Raises UnexpectedAnswer for anything but 2xx."""
        return await self.send(method, path, None if body is None else json.dumps(body).encode(), **query)

    async def send(self, method: str, path: str, body: bytes | None, **query: str) -> Any:
        """The same with a body that is JSON text already, sent byte for byte."""
        headers = {} if body is None else {"Content-Type": "application/json"}
        async with self._session.request(
            method, f"{self._url}/v1/{path}", data=body, headers=headers, params=query
        ) as response:
            text = await response.text()
            if not response.ok:
                raise UnexpectedAnswer(f"{method} /v1/{path} answered {response.status}: {text[:500]}")
            return json.loads(text) if text else None

    async def every(self, path: str, **query: str) -> list[dict[str, Any]]:
        """All items of a list, page by page."""
        items: list[dict[str, Any]] = []
        page = await self.call("GET", path, limit=str(_PAGE), **query)
        items += page["data"]
        while page["has_more"]:
            page = await self.call("GET", path, limit=str(_PAGE), cursor=page["next_cursor"], **query)
            items += page["data"]
        return items

    async def statuses(self, subscription_id: str) -> Counter[str]:
        """How many deliveries of a subscription there are, by status."""
        return Counter(item["status"] for item in await self.every("deliveries", subscription_id=subscription_id))


@asynccontextmanager
async def open_api_client(url: str, admin_key: str) -> AsyncIterator[Api]:
    """A client for the API at `url`."""
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {admin_key}"}, timeout=timeout, trust_env=False
    ) as session:
        yield Api(session, url)
