"""The servers as an operator runs them, with a mark in every setting that can hold a secret.

And a client of them that keeps all that they answer.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson

from infra.crypto import new_key
from infra.store import api_keys
from infra.store.store import open_store
from tests.support.canaries import Canaries
from tests.support.commands import serving
from tests.support.receivers import Receiver
from tests.support.system import Api, System

MADE = "a secret that was made here"  # the slot


class Witness(Api):
    """The API as a client sees it, and all of its answers but for the secrets that are told once, which are marked."""

    def __init__(self, session: aiohttp.ClientSession, base: str, canaries: Canaries) -> None:
        super().__init__(session, base)
        self.session = session
        self.answers: list[bytes] = []
        self._canaries = canaries

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        status, answer = await super().ask(method, path, body)
        kept = self._without_new_secrets(answer) if _tells_secrets(method, path, body) else answer
        self.answers.append(orjson.dumps(kept))
        return status, answer

    async def raw(self, method: str, url: str, **more: Any) -> int:
        """A call as it is given, its answer's headers and body kept; the status."""
        async with self.session.request(method, url, **more) as response:
            self.answers.append(str(response.headers).encode() + await response.read())
            return response.status

    def _without_new_secrets(self, answer: Any) -> Any:
        match answer:
            case dict():
                if isinstance(secret := answer.get("secret"), str):
                    self._canaries.add(MADE, secret.removeprefix("whsec_").removeprefix("whsk_"))
                return {name: self._without_new_secrets(one) for name, one in answer.items() if name != "secret"}
            case list():
                return [self._without_new_secrets(one) for one in answer]
        return answer


def _tells_secrets(method: str, path: str, body: object) -> bool:
    """Whether this is one of the calls that tell a secret, the one time when it is new."""
    if method == "POST":
        return path == "/v1/subscriptions" or path.endswith("/rotate-secret")
    return method == "PATCH" and isinstance(body, dict) and "signature" in body


def with_password(url: str, password: str) -> str:
    """The URL of a PostgreSQL server that trusts whoever comes, which takes any password."""
    joint = "&" if "?" in url else "?"
    return f"{url}{joint}password={quote(password, safe='')}"


class MarkedInstallation:
    """The servers as processes over one database and one broker, with a mark in every setting that can hold one."""

    def __init__(self, system: System, broker_url: str, canaries: Canaries, collector: Receiver, folder: Path) -> None:
        self.system = system
        self.canaries = canaries
        self.keys = [canaries.add(f"the {place} encryption key", new_key()) for place in ("first", "second")]
        self._folder = folder
        collects = canaries.text("the password of the collector's URL")
        proxy = canaries.text("the password of the outbound proxy")
        changes: dict[str, object] = {
            "egress_proxy": f"http://canary:{quote(proxy, safe='')}@127.0.0.1:9",  # nobody is there
            "egress_no_proxy": "127.0.0.0/8",
            "encryption_keys": ",".join(self.keys),
            "database_url": with_password(system.database_url, canaries.text("the password of the database's URL")),
            "broker_url": broker_url,
            "otlp_endpoint": f"http://canary:{quote(collects, safe='')}@127.0.0.1:{collector.port}",
            "log_level": "debug",
        }
        self.environment = system.environment(**changes)
        self.settings = system.settings(**changes)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[tuple[Witness, str]]:
        """A client of the API with an admin key, and the base URL of the dispatcher."""
        async with open_store(self.settings) as store, store.transaction() as connection:
            key, row = await api_keys.create(connection, "test")
        self.canaries.add("the admin key", key.removeprefix(row.prefix))  # its beginning is shown in lists
        async with (
            serving(self.environment, "api", self._folder / "api.log") as api,
            serving(self.environment, "dispatcher", self._folder / "dispatcher.log") as dispatcher,
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session,
        ):
            yield Witness(session, api, self.canaries), dispatcher

    @property
    def logs(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in self._folder.glob("*.log")}
