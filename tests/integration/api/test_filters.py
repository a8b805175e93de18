"""`filter` of a subscription: taken, shown, changed and refused."""

from tests.support.api import ApiClient

SUBSCRIPTIONS = "/v1/subscriptions"
WANTED = {"url": "https://example.com/hook", "event_types": ["#"]}
FILTER = {"data.amount": {"$gte": 100}, "$or": [{"type": "a"}, {"data.tags": {"$in": ["x", None, 1.5]}}]}


async def test_a_filter_is_shown_as_it_was_given_kept_replaced_and_taken_away(api: ApiClient) -> None:
    created = await api.post(SUBSCRIPTIONS, WANTED | {"filter": FILTER}, status=201)
    path = f"{SUBSCRIPTIONS}/{created['id']}"
    assert created["filter"] == FILTER
    assert (await api.call("PATCH", path, {"description": "new"})).body["filter"] == FILTER
    assert (await api.call("PATCH", path, {"filter": {"type": "b"}})).body["filter"] == {"type": "b"}
    assert (await api.call("PATCH", path, {"filter": None})).body["filter"] is None
    assert (await api.call("GET", path)).body["filter"] is None


async def test_a_filter_that_cannot_be_is_400_and_names_where(api: ApiClient) -> None:
    created = await api.post(SUBSCRIPTIONS, WANTED, status=201)
    assert created["filter"] is None
    for method, path, body in (
        ("POST", SUBSCRIPTIONS, WANTED),
        ("PATCH", f"{SUBSCRIPTIONS}/{created['id']}", {}),
    ):
        answer = await api.call(method, path, body | {"filter": {"$and": [{"data.a": {"$regex": "x"}}]}})
        assert (answer.status, answer.code) == (400, "validation_failed")
        assert list(answer.fields) == ["filter"]
        assert answer.fields["filter"].startswith("at $and.0.data.a: must be a value, or an object of operators")
