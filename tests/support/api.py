"""A running API and a client of it, for tests."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from consumer_api.bootstrap import open_api
from infra.crypto import new_key
from infra.settings import Settings, read_settings
from infra.store import api_keys
from infra.store.store import Store


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API answered; `body` is parsed, `raw` the bytes that it was parsed from."""

    status: int
    headers: Mapping[str, str]  # of any case
    raw: bytes

    @property
    def body(self) -> Any:
        return orjson.loads(self.raw) if self.raw else None

    @property
    def code(self) -> str:
        """The code of an error."""
        return str(self.body["error"]["code"])

    @property
    def fields(self) -> dict[str, str]:
        """What an error says of each field at fault."""
        return {detail["field"]: detail["message"] for detail in self.body["error"]["details"]}


class ApiClient:
    """Calls an API with a key: an admin's, unless it was made by `of_tenant`."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self.session = session
        self.url = url
        self.key = key

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        key: str | None = None,
        **query: Any,
    ) -> Answer:
        """`body` is sent as it is when it is bytes, as JSON otherwise. No key is sent when `key` is empty."""
        sent = {"Authorization": f"Bearer {self.key if key is None else key}"} if key != "" else {}
        data = body if isinstance(body, bytes) or body is None else orjson.dumps(body)
        async with self.session.request(
            method, f"{self.url}{path}", data=data, headers=sent | (headers or {}), params=query
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def of_tenant(self, tenant: str, *scopes: str, **given: Any) -> "ApiClient":
        """A client with a new key of a tenant, which has these scopes, or all; `given` are further fields of it."""
        wanted = {"name": "a tenant's", "tenant": tenant, "scopes": list(scopes) or ["*"]}
        made = await self.post("/v1/keys", wanted | given, status=201)
        return ApiClient(self.session, self.url, made["key"])

    async def get(self, path: str, **query: Any) -> Any:
        """The body of a 200."""
        return _body(await self.call("GET", path, **query), 200)

    async def post(self, path: str, body: Any = None, *, status: int = 202) -> Any:
        """The body of an answer to a POST."""
        return _body(await self.call("POST", path, body), status)

    async def patch(self, path: str, body: Any) -> Any:
        """The body of a 200."""
        return _body(await self.call("PATCH", path, body), 200)


def _body(answer: Answer, status: int) -> Any:
    assert answer.status == status, answer.raw
    return answer.body


def api_settings(database_url: str, **given: Any) -> Settings:
    """Settings of an API that listens on a free port, with an encryption key of its own."""
    egress = {"egress_allow": "127.0.0.0/8", "egress_http": True, "egress_ports": "1-65535"}
    values = {"database_url": database_url, "encryption_keys": new_key(), "api_port": 0, **egress}
    return read_settings(**values | given)


@asynccontextmanager
async def running_api(settings: Settings, store: Store) -> AsyncIterator[ApiClient]:
    """The API, and a client with a new admin key."""
    async with store.transaction() as conn:
        key, _ = await api_keys.create(conn, "test")
    async with open_api(settings) as running, client_of(f"http://{running.host}:{running.port}", key) as client:
        yield client


@asynccontextmanager
async def client_of(url: str, key: str) -> AsyncIterator[ApiClient]:
    timeout = aiohttp.ClientTimeout(total=20)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
        yield ApiClient(session, url, key)
