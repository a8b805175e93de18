"""Schemathesis against the running API: it answers what its document says, and refuses what its document rules out.

As a command, since the API runs in this process. Deterministic: the same requests each time, but for ids and keys.
"""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from structlog.testing import capture_logs
from uuid_utils.compat import uuid7

from consumer_api import replays
from consumer_api.app import all_routes
from infra.store import replays as store_replays
from infra.store.dead_letters import pack_properties
from infra.store.history import DeliveryFilter
from infra.store.store import Store
from schemas.ids import DEAD_LETTER, DELIVERY, EVENT, REPLAY, SUBSCRIPTION, parse_id, public_id
from schemas.messages import Message
from tests.support import rows
from tests.support.api import ApiClient, api_settings, running_api

CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "negative_data_rejection", "ignored_auth"),
)
TIMEOUT_S = 300
OF_EACH = 6  # some are used up, as by DELETE


def _run(api: ApiClient, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{api.url}/openapi.json"),
        *("--header", f"Authorization: Bearer {api.key}", "--checks", ",".join(CHECKS)),
        *("--max-examples", "4", "--generation-deterministic", "--no-color", "--warnings", "off", *more),
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


async def _ids(api: ApiClient, store: Store) -> dict[str, list[str]]:
    """What is there to be asked for, by the parameter that takes its id."""
    made: dict[str, list[str]] = {}

    def note(prefix: str, parameter: str, key: UUID) -> None:
        made.setdefault(parameter, []).append(public_id(prefix, key))

    wish = {"url": rows.HOOK_URL, "event_types": ["order.#"], "headers": {"X-Key": "k"}}
    created = [(await api.post("/v1/subscriptions", wish, status=201))["id"] for _ in range(OF_EACH)]
    for number in range(OF_EACH):
        name = f"order.v{number}"
        await api.post("/v1/event-types", {"name": name, "schema": {}, "example": {"n": 1}}, status=201)
        made.setdefault("event_type", []).append(name)
        made["version"] = ["1"]
    async with store.transaction() as conn:
        for number in range(OF_EACH):
            subscription = parse_id(SUBSCRIPTION, created[number])
            delivery = await rows.add_delivery(conn, subscription, ("dead", "held")[number % 2])
            await rows.add_attempt(conn, delivery)
            note(SUBSCRIPTION, "subscription_id", subscription)
            note(DELIVERY, "delivery_id", delivery)
            note(EVENT, "event_id", await rows.add_event(conn))
            message = Message(body=b'{"n":1}', content_type="application/json")
            letter = await rows.add_message_letter(
                conn, kind="unreadable", body=message.body, headers=pack_properties(message), routing_key="events"
            )
            note(DEAD_LETTER, "dead_letter_id", letter)
            wanted = DeliveryFilter(subscription_id=subscription)
            replay = await store_replays.create(
                conn, replay_id=uuid7(), wanted=wanted, max_per_s=10, now=datetime.now(UTC)
            )
            note(REPLAY, "replay_id", replay.id)
    return made


def _configuration(ids: dict[str, list[str]]) -> str:
    """Most ids in paths are of what is there; the others are made up."""
    lists = [f"[dictionaries.{name}]\nvalues = {values}\n" for name, values in ids.items()]
    bound = [f'"path.{name}" = {{ dictionary = "{name}", probability = 0.8 }}' for name in ids]
    bound.append('"query.wait_s" = 0')  # no dispatcher runs here, so whoever waits for an attempt waits in vain
    # Other methods have a test of their own (test_http.py).
    return "\n".join([*lists, "[parameters]", *bound, "[phases.coverage]", "unexpected-methods = []"])


@pytest.fixture
async def api(database_url: str, store: Store) -> AsyncIterator[ApiClient]:
    """One that takes any number of wrong keys, of which many are sent."""
    async with running_api(api_settings(database_url, auth_failures_per_min=100_000), store) as client:
        yield client


async def test_it_keeps_to_its_document(api: ApiClient, store: Store, tmp_path: Path) -> None:
    ids = await _ids(api, store)
    (tmp_path / "schemathesis.toml").write_text(_configuration(ids))
    with capture_logs() as lines:
        done = await asyncio.to_thread(_run, api, tmp_path)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    succeeded = {(line["method"], line["route"]) for line in lines if line.get("status", 500) < 400}
    reading = {
        (route.method, route.path)
        for route in all_routes()
        if route.scope is not None and route.method == "GET" and set(re.findall(r"\{(\w+)", route.path)) <= ids.keys()
    }
    assert len(reading) >= 12
    assert reading <= succeeded, "what is answered was never seen"


async def test_an_answer_that_is_not_what_the_document_says_is_noticed(
    api: ApiClient, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _ids(api, store)
    monkeypatch.setattr(replays, "replay_view", lambda row: {"id": str(row.id)})
    done = await asyncio.to_thread(_run, api, tmp_path, "--include-path", "/v1/replays", "--include-method", "GET")
    assert done.returncode == 1
    assert "Response violates schema" in done.stdout
