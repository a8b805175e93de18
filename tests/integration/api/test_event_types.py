"""`/v1/event-types`: the catalogue, and what it makes of events that are published over HTTP."""

from datetime import UTC, datetime
from typing import Any

import pytest

from infra.store import event_types
from infra.store.store import Store
from schemas.events import build_event
from tests.support import rows
from tests.support.api import ApiClient, api_settings, running_api

PATH = "/v1/event-types"
SCHEMA = {"type": "object", "properties": {"total": {"type": "string"}}, "required": ["total"]}
WANTED = {"name": "order.created", "description": "An order.", "schema": SCHEMA, "example": {"total": "1.10"}}


def event(data: Any, **more: Any) -> dict[str, Any]:
    return {"type": "order.created", "data": data, **more}


async def audited(store: Store) -> list[tuple[str, str | None, Any, Any]]:
    async with store.connection() as conn:
        rows = await conn.fetch(
            "SELECT action, tenant, before, after FROM audit_log WHERE target = $1 ORDER BY id", WANTED["name"]
        )
    return [tuple(row) for row in rows]


async def test_a_type_is_made_changed_and_deleted_and_all_of_it_is_recorded(api: ApiClient, store: Store) -> None:
    made = await api.post(PATH, WANTED, status=201)
    assert made == await api.get(f"{PATH}/order.created")
    assert (made["schema_version"], made["deprecated"], made["example"]) == (1, False, {"total": "1.10"})
    version = await api.get(f"{PATH}/order.created/versions/1")
    assert (version["schema"], version["dataschema"]) == (SCHEMA, f"{PATH}/order.created/versions/1")
    told = await api.patch(f"{PATH}/order.created", {"deprecated": True, "deprecation": "order.placed"})
    assert (told["deprecated"], told["deprecation"], told["description"]) == (True, "order.placed", "An order.")
    assert told["deprecated_at"] is not None
    back = await api.patch(f"{PATH}/order.created", {"deprecated": False, "example": None})
    assert (back["deprecated_at"], back["deprecation"], back["example"]) == (None, None, None)
    second = await api.post(f"{PATH}/order.created/versions", {"schema": {"type": "object"}}, status=201)
    assert second["version"] == 2
    assert [one["version"] for one in (await api.get(f"{PATH}/order.created/versions"))["data"]] == [2, 1]
    assert (await api.call("DELETE", f"{PATH}/order.created")).status == 204
    assert (await api.call("GET", f"{PATH}/order.created")).status == 404
    assert (await api.get(PATH))["data"] == []
    records = await audited(store)
    assert [(action, tenant) for action, tenant, *_ in records] == [
        ("event_type.created", None),
        ("event_type.version_added", None),
        ("event_type.updated", None),
        ("event_type.updated", None),
        ("event_type.version_added", None),
        ("event_type.deleted", None),
    ]
    assert records[2][2]["deprecated"] is False
    assert records[2][3]["deprecated"] is True
    again = await api.post(PATH, WANTED, status=201)  # its name is free, and its versions begin anew
    assert again["schema_version"] == 1


async def test_a_schema_and_an_example_stay_the_bytes_that_came(api: ApiClient, store: Store) -> None:
    body = b'{"name":"a.b","schema":{"maximum" : 12345678901234567890123},"example":12345678901234567890122}'
    assert b'"example":12345678901234567890122' in (await api.call("POST", PATH, body)).raw
    assert b'{"maximum" : 12345678901234567890123}' in (await api.call("GET", f"{PATH}/a.b/versions/1")).raw
    null = b'{"name":"a.c","example":{"text":"\\u0000"}}'  # what PostgreSQL's JSON cannot hold
    assert (await api.call("POST", PATH, null)).status == 201


WRONG = [
    ({"name": "hookhare.x"}, "name", "must not begin with the word hookhare"),
    ({"name": "order created"}, "name", "words of letters"),
    ({"name": "a", "schema": 5}, "schema", "must be a JSON Schema"),
    ({"name": "a", "schema": {"type": "strin"}}, "schema.type", "2020-12"),
    ({"name": "a", "schema": {"pattern": "(?=a)b"}}, "schema.pattern", "look-ahead"),
    ({"name": "a", "schema": {"pattern": r"(a)\1"}}, "schema.pattern", "backreferences"),
    ({"name": "a", "schema": {"$ref": "https://example.com/x"}}, "schema.$ref", "nothing is fetched"),
    ({"name": "a", "schema": {"items": {"$ref": "#"}}}, "schema", "must not refer to itself"),
    ({"name": "a", "schema": {"title": "x" * 33_000}}, "schema", "at most 32768 bytes"),
    ({"name": "a", "schema": SCHEMA, "example": {"total": 1}}, "example.total", "must be text (#/properties"),
    ({"name": "a", "example": "x" * 33_000}, "example", "at most 32768 bytes"),
    ({"name": "a", "deprecation": "b"}, "deprecation", "is for a type that is deprecated"),
    ({"name": "a", "definition": {}}, "definition", "is not a known field; known are name, description, schema"),
]


async def test_what_is_wrong_with_a_type_is_named(api: ApiClient) -> None:
    for body, field, message in WRONG:
        answer = await api.call("POST", PATH, body)
        assert (answer.status, answer.code) == (400, "validation_failed"), (body, answer.raw)
        assert message in answer.fields[field], body


async def test_errors_of_each_route(api: ApiClient) -> None:
    await api.post(PATH, WANTED, status=201)
    twice = await api.call("POST", PATH, WANTED)
    assert (twice.status, twice.code) == (409, "conflict")
    one = f"{PATH}/order.created"
    assert (await api.call("POST", PATH, b"{")).code == "invalid_json"
    assert (await api.call("PATCH", one, {"example": {}})).fields == {"example.total": "is required (#/required)"}
    assert (await api.call("PATCH", one, {"description": None})).fields == {"description": "must not be null"}
    narrower = await api.call("POST", f"{one}/versions", {"schema": {"required": ["id"]}})
    assert narrower.fields == {"example.id": "is required (#/required)"}
    assert (await api.call("POST", f"{one}/versions", {"schema": None})).status == 400
    both = {"schema": {"required": ["id"]}, "example": {"id": 1}}
    assert (await api.post(f"{one}/versions", both, status=201))["version"] == 2
    assert (await api.get(one))["example"] == {"id": 1}
    assert (await api.call("GET", f"{one}/versions/3")).status == 404
    assert (await api.call("GET", f"{one}/versions/x")).fields == {"version": "must be the number of a version"}
    for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/versions"), ("GET", "/versions")):
        body: Any = {"POST": {"schema": {}}, "PATCH": {}}.get(method)
        answer = await api.call(method, f"{PATH}/no.such{path}", body)
        assert (answer.status, answer.code) == (404, "not_found"), (method, path)


async def test_a_type_whose_name_is_no_plain_path_is_had_by_it(api: ApiClient) -> None:
    made = await api.call("POST", PATH, {"name": "com/example:order.created", "schema": {"type": "object"}})
    where = made.headers["Location"]
    assert where == f"{PATH}/com%2Fexample%3Aorder.created"
    assert (await api.get(where))["name"] == "com/example:order.created"
    version = (await api.get(f"{where}/versions/1"))["dataschema"]
    assert (await api.get(version))["schema"] == {"type": "object"}
    await api.post("/v1/events", {"type": "com/example:order.created", "data": {}, "dataschema": version})


async def test_the_catalogue_is_bounded(api: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    await api.post(PATH, WANTED, status=201)
    for name, bound, path, body in (
        ("MAX_TYPES", 1, PATH, {"name": "a"}),
        ("MAX_VERSIONS", 1, f"{PATH}/order.created/versions", {"schema": {}, "example": None}),
        ("MAX_SCHEMAS_BYTES", 50, f"{PATH}/order.created/versions", {"schema": {}}),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(event_types, name, bound)
            assert (await api.call("POST", path, body)).code == "conflict", name


async def test_a_list_of_types_is_filtered_paged_and_exported(api: ApiClient) -> None:
    for name in ("a", "b", "c"):
        await api.post(PATH, {"name": name, "deprecated": name == "b"}, status=201)
    assert [one["name"] for one in (await api.get(PATH, deprecated="true"))["data"]] == ["b"]
    assert [one["name"] for one in (await api.get(PATH, deprecated="false"))["data"]] == ["c", "a"]
    page = await api.get(PATH, limit=2)
    assert [one["name"] for one in page["data"]] == ["c", "b"]
    assert [one["name"] for one in (await api.get(PATH, cursor=page["next_cursor"]))["data"]] == ["a"]
    csv = (await api.call("GET", PATH, format="csv")).raw.decode()
    assert csv.startswith("name,description,schema_version,example,deprecated")


async def test_a_tenants_key_reads_the_catalogue_and_does_not_write_it(api: ApiClient) -> None:
    await api.post(PATH, WANTED, status=201)
    tenant = await api.of_tenant("acme")
    assert (await tenant.get(PATH))["data"] == (await api.get(PATH))["data"]
    assert (await tenant.get(f"{PATH}/order.created/versions"))["data"][0]["schema"] == SCHEMA
    for method, path in (("POST", PATH), ("PATCH", f"{PATH}/order.created"), ("DELETE", f"{PATH}/order.created")):
        assert (await tenant.call(method, path, WANTED)).status == 403


async def test_an_event_that_breaks_its_schema_is_refused_with_the_place_and_the_rule(api: ApiClient) -> None:
    await api.post(PATH, WANTED, status=201)
    bad = await api.call("POST", "/v1/events", event({"total": 4711}))
    assert (bad.status, bad.code) == (422, "event_invalid")
    assert bad.fields == {"data.total": "must be text (#/properties/total/type)"}
    assert b"4711" not in bad.raw
    good = await api.post("/v1/events", event({"total": "1.10"}))
    assert good["warnings"] == []
    assert (await api.post("/v1/events", {"type": "other", "data": 1}))["warnings"] == []
    assert b'hookhare_events_invalid_total{result="refused"} 1.0' in (await api.call("GET", "/metrics")).raw


async def test_a_type_and_a_version_are_made_once_for_an_idempotency_key(api: ApiClient) -> None:
    headers = {"Idempotency-Key": "once"}
    for path, body, where in (
        (PATH, WANTED, f"{PATH}/order.created"),
        (f"{PATH}/order.created/versions", {"schema": SCHEMA}, f"{PATH}/order.created/versions/2"),
    ):
        first, again = [await api.call("POST", path, body, headers=headers) for _ in range(2)]
        assert (first.status, again.status, again.headers["Idempotency-Replayed"]) == (201, 201, "true")
        assert first.raw == again.raw
        assert first.headers["Location"] == again.headers["Location"] == where


async def test_what_was_refused_is_judged_anew_with_the_same_idempotency_key(api: ApiClient) -> None:
    await api.post(PATH, WANTED, status=201)
    for path, body in (("/v1/events", event({"total": 1})), ("/v1/events/batch", {"events": [event({"total": 1})]})):
        first, again = [await api.call("POST", path, body, headers={"Idempotency-Key": "again"}) for _ in range(2)]
        assert (b"event_invalid" in first.raw, again.headers.get("Idempotency-Replayed")) == (True, None), path


async def test_an_event_says_which_version_it_keeps(api: ApiClient) -> None:
    await api.post(PATH, WANTED, status=201)
    newer = {"schema": {"properties": {"total": {"type": "integer"}}}, "example": {"total": 1}}
    await api.post(f"{PATH}/order.created/versions", newer, status=201)
    first = "https://hooks.example.com/v1/event-types/order.created/versions/1"
    await api.post("/v1/events", event({"total": 1}))
    await api.post("/v1/events", event({"total": "1.10"}, dataschema=first))
    await api.post("/v1/events", event({"total": 1}, dataschema="urn:of:somebody"))
    assert (await api.call("POST", "/v1/events", event({"total": 1}, dataschema=first))).status == 422
    third = await api.call("POST", "/v1/events", event({"total": 1}, dataschema=first.replace("/1", "/3")))
    assert third.fields == {"dataschema": "must name a version of the type's schema, of which the newest is 2"}


async def test_in_a_batch_each_event_is_judged_by_itself(api: ApiClient) -> None:
    await api.post(PATH, WANTED, status=201)
    events = [event({"total": 1}, id="a"), event({"total": "1"}, id="a"), event({"total": 2}), {"type": "x", "data": 1}]
    results = (await api.post("/v1/events/batch", {"events": events}, status=200))["results"]
    assert [one["result"] for one in results] == ["invalid", "accepted", "invalid", "accepted"]
    assert results[0]["external_id"] == "a"
    assert results[0]["error"]["code"] == "event_invalid"
    assert results[0]["error"]["details"][0]["field"] == "data.total"


async def test_a_preview_says_what_publishing_would_be_refused_for(api: ApiClient) -> None:
    await api.post(PATH, WANTED, status=201)
    shown = await api.post("/v1/subscriptions/preview", event({"total": 1}), status=200)
    assert shown["problems"] == [{"field": "data.total", "message": "must be text (#/properties/total/type)"}]
    assert (await api.post("/v1/subscriptions/preview", event({"total": "1"}), status=200))["problems"] == []


async def test_where_it_only_warns_the_answer_says_so(database_url: str, store: Store) -> None:
    async with running_api(api_settings(database_url, event_schema_mode="warn"), store) as api:
        await api.post(PATH, WANTED, status=201)
        told = {"field": "data.total", "message": "must be text (#/properties/total/type)"}
        assert (await api.post("/v1/events", event({"total": 1})))["warnings"] == [told]
        batch = await api.post("/v1/events/batch", {"events": [event({"total": 1})]}, status=200)
        assert batch["results"][0]["event"]["warnings"] == [told]
        assert b'hookhare_events_invalid_total{result="warned"} 2.0' in (await api.call("GET", "/metrics")).raw


async def test_where_only_known_types_are_taken_the_others_are_refused(database_url: str, store: Store) -> None:
    settings = api_settings(database_url, event_schema_mode="off", unknown_event_types="refuse")
    async with running_api(settings, store) as api:
        await api.post(PATH, WANTED, status=201)
        await api.post("/v1/events", event({"total": 1}))
        unknown = await api.call("POST", "/v1/events", {"type": "other", "data": 1})
        assert (unknown.status, unknown.code) == (422, "unknown_event_type")
        assert unknown.fields == {"type": "is not in the catalogue of event types"}
        await api.call("DELETE", f"{PATH}/order.created")
        assert (await api.call("POST", "/v1/events", event({"total": 1}))).status == 422


async def test_what_was_admitted_before_is_a_duplicate_whatever_the_catalogue_says_now(
    api: ApiClient, store: Store
) -> None:
    data = b'{"total":1}'
    said = build_event(type="order.created", data=data, external_id="known", source="shop", time=datetime.now(UTC))
    async with store.transaction() as conn:
        await rows.add_event(conn, external_id="known", data=data, digest=said.digest)
    await api.post(PATH, WANTED, status=201)
    body = event({"total": 1}, id="known", source="shop")
    assert (await api.post("/v1/events", body))["duplicate"]
    (result,) = (await api.post("/v1/events/batch", {"events": [body]}, status=200))["results"]
    assert result["result"] == "duplicate"
