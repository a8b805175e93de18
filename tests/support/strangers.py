"""Two tenants with rows of every kind, and what one of them is answered when it asks for the other's.

What to ask for is read from the declared routes: the parameters of paths, and the fields of queries and bodies that
name something by its id. So a new one has to be known here before the walk passes.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import asyncpg
from pydantic import BaseModel
from uuid_utils.compat import uuid7

from consumer_api.caller import id_prefix
from consumer_api.cursors import decode_cursor, encode_cursor
from consumer_api.openapi import documented_path, make_document
from consumer_api.route import Route
from infra.store import tables
from infra.store.store import Store
from schemas.ids import (
    API_KEY,
    ATTEMPT,
    AUDIT_ENTRY,
    DEAD_LETTER,
    DELIVERY,
    EVENT,
    REPLAY,
    SECRET,
    SUBSCRIPTION,
    parse_id,
    public_id,
)
from tests.support import rows
from tests.support.api import Answer, ApiClient

PARAMETER: Final = re.compile(r"\{(\w+)(?::[^{}]+)?\}")
_NAMES_SOMETHING: Final = re.compile(r"tenant|cursor|.*_ids?")
OF_NOBODY: Final = frozenset({"event_type", "version"})  # what a path names that is the same for every tenant
_THEIRS: Final = frozenset({"client_id"})  # names something of the endpoint's
# They differ between any two answers, or count what was asked so far.
_VARIABLE: Final = frozenset({"date", "x-request-id", "x-ratelimit-remaining", "x-ratelimit-reset"})
_VARIABLE_FIELDS: Final = ("request_id", "timestamp", "use_count", "last_used_at", "since", "until")

Path = tuple[str, ...]  # of a field in a body; "[]" for the members of a list


@dataclass(frozen=True, slots=True)
class Tenant:
    """What is a tenant's: for each name of a parameter or field, something that may be asked for by it."""

    client: ApiClient
    ids: Mapping[str, str]
    marks: tuple[str, ...]  # texts that stand in its rows and answers, and nowhere else


async def populate(api: ApiClient, store: Store, name: str) -> Tenant:
    """A tenant with rows of every kind."""
    client = await api.of_tenant(name)
    url = f"https://hooks.{name}.example/in"
    wish = {"url": url, "event_types": ["order.#"], "headers": {"X-Key": f"secret-of-{name}"}}
    made = await client.post("/v1/subscriptions", wish, status=201)
    subscription_id = made["id"]
    subscription = parse_id(SUBSCRIPTION, subscription_id)
    external_id = f"external-{name}"
    async with store.transaction() as conn:
        event = await rows.add_event(conn, tenant=name, external_id=external_id, digest=b"d" * 32)
        dead = await rows.add_delivery(conn, subscription, "dead", event=event, tenant=name)
        held = await rows.add_delivery(conn, subscription, "held", tenant=name)
        attempts = [await rows.add_attempt(conn, one, url=url) for one in (dead, held)]
        letter = await conn.fetchval("SELECT id FROM dead_letters WHERE delivery_id = $1", dead)
        key = await conn.fetchval("SELECT id FROM api_keys WHERE tenant = $1", name)
        entry = await conn.fetchval("SELECT id FROM audit_log WHERE target = $1", subscription_id)
    replay = await client.post("/v1/replays", {"subscription_id": subscription_id, "max_per_s": 0.01})
    ids = {
        "subscription_id": subscription_id,
        "event_id": public_id(EVENT, event),
        "delivery_id": public_id(DELIVERY, dead),
        "attempt_id": public_id(ATTEMPT, attempts[0]),
        "dead_letter_id": public_id(DEAD_LETTER, letter),
        "replay_id": replay["id"],
        "key_id": public_id(API_KEY, key),
        "audit_entry_id": public_id(AUDIT_ENTRY, entry),
        "secret_id": made["secrets"][0]["id"],
        "external_id": external_id,
        "tenant": name,
        "cursor": encode_cursor(event),
        "event_type": "order.created",
        "version": "1",
    }
    keys = [subscription, event, dead, held, *attempts, letter, key, entry, parse_id(REPLAY, replay["id"])]
    shown = [value for field, value in ids.items() if field not in {"cursor", *OF_NOBODY}]
    return Tenant(client, ids, (*shown, public_id(DELIVERY, held), f".{name}.", *map(str, keys)))


def absent(name: str, like: str) -> str:
    """Something of the kind of `like` that is nobody's, for a parameter or field of this name."""
    if name == "cursor":
        return encode_cursor(UUID(int=decode_cursor(like).int ^ 1))
    prefix = SECRET if name == "secret_id" else id_prefix(name)  # which no path takes
    return "nobody" if prefix is None else public_id(prefix, uuid7())


class Ways:
    """The ways to ask for something by its id, as the routes declare them."""

    def __init__(self, routes: list[Route]) -> None:
        self.routes = [route for route in routes if route.scope is not None]
        self._document = make_document(routes, version="0")

    def unknown(self, known: Iterable[str]) -> set[str]:
        """The names of parameters and fields by which something is asked for that no tenant here has."""
        names = {name for route in self.routes for name in PARAMETER.findall(route.path)}
        for route in self.routes:
            names |= set(fields_of(route.query))
            names |= {path[-1].removesuffix("s") for path in naming(route.body)}
        return names - set(known)

    def body(self, route: Route, tenant: str) -> Any:
        """The body that the document gives as an example, of a tenant."""
        if route.body is None:
            return None
        operation = self._document["paths"][documented_path(route.path)][route.method.lower()]
        return _of_tenant(operation["requestBody"]["content"]["application/json"]["example"], tenant)


def _of_tenant(body: Any, tenant: str) -> Any:
    if isinstance(body, list):
        return [_of_tenant(one, tenant) for one in body]
    if isinstance(body, dict):
        return {name: tenant if name == "tenant" else _of_tenant(one, tenant) for name, one in body.items()}
    return body


def at(path: str, ids: Mapping[str, str]) -> str:
    """A route's path with these ids in it."""
    return PARAMETER.sub(lambda found: ids[found[1]], path)


def fields_of(model: type[BaseModel] | None) -> list[str]:
    """The fields of a query that name something."""
    return [] if model is None else [name for name in model.model_fields if _NAMES_SOMETHING.fullmatch(name)]


def naming(model: type[BaseModel] | None) -> list[Path]:
    """The fields of a body that name something, at any depth."""
    if model is None:
        return []
    schema = model.model_json_schema()
    return sorted(set(_naming(schema, schema.get("$defs", {}), (), frozenset())))


def _naming(schema: Any, models: Mapping[str, Any], path: Path, above: frozenset[str]) -> Iterator[Path]:
    reference = schema.get("$ref")
    if reference is not None:
        if reference not in above:  # a filter nests in itself
            yield from _naming(models[reference.rpartition("/")[2]], models, path, above | {reference})
        return
    for alternative in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _naming(alternative, models, path, above)
    if isinstance(items := schema.get("items"), dict):
        yield from _naming(items, models, (*path, "[]"), above)
    for name, one in schema.get("properties", {}).items():
        if _NAMES_SOMETHING.fullmatch(name) and name not in _THEIRS:
            yield (*path, name)
        yield from _naming(one, models, (*path, name), above)


def put(body: Any, path: Path, value: str) -> Any:
    """A body with a field set."""
    first, *rest = path
    if first == "[]":
        return [put(one, tuple(rest), value) for one in body]
    if rest:
        return body | {first: put(body[first], tuple(rest), value)}
    return body | {first: [value] if first.endswith("_ids") else value}


def told(answer: Answer, asked_for: str = "") -> tuple[int, dict[str, str], str]:
    """All that an answer tells: without what differs between any two, and without the id that was asked for."""
    headers = {name.lower(): value for name, value in answer.headers.items()}
    kept = {name: value for name, value in headers.items() if name not in _VARIABLE}
    text = answer.raw.decode()
    for field in _VARIABLE_FIELDS:
        text = re.sub(rf'("{field}":)("[^"]*"|\d+|null)', r"\1?", text)
    text = re.sub(r'("webhook-(?:id|timestamp)",|\\"timestamp\\":\\)"[^"]*"', r"\1?", text)  # of what would be sent now
    if asked_for:
        text = text.replace(asked_for, "?")
    if '"use_count"' in text:
        kept.pop("content-length", None)  # which goes with what is replaced
    return answer.status, kept, text


async def rows_that_tell_of(store: Store, tenant: Tenant) -> dict[str, list[str]]:
    """Every row, of whatever table, in which something of a tenant stands."""
    patterns = [f"%{mark}%" for mark in tenant.marks]
    async with store.connection() as conn:
        return {table: await _matching(conn, table, patterns) for table in tables.metadata.tables}


async def _matching(conn: asyncpg.Connection, table: str, patterns: list[str]) -> list[str]:
    found = await conn.fetch(f'SELECT t::text AS row FROM "{table}" AS t WHERE t::text LIKE ANY($1)', patterns)
    return sorted(record["row"] for record in found)


def as_text(answer: Answer) -> str:
    """An answer, headers and all, to look for marks in."""
    return "\n".join([*(f"{name}: {value}" for name, value in answer.headers.items()), answer.raw.decode()])
