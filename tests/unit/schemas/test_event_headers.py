"""An event's headers: what they may be, and how each mode of a message brings them."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.request_head import header_fault
from schemas.errors import InvalidInput
from schemas.event_envelopes import CLOUDEVENTS_JSON
from schemas.event_headers import event_headers_fault, read_event_headers, write_event_headers
from schemas.events import Event, Unreadable
from schemas.headers import headers_fault
from schemas.messages import HeaderValue
from tests.unit.schemas.event_cases import BINARY, PLAIN, STRUCTURED, event, read, unreadable

GOOD = {"X-Region": "eu", "x-empty": ""}
TEXT = '{"X-Region":"eu","x-empty":""}'
JSON_TEXTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
).map(lambda value: msgspec.json.encode(value).decode())


class TestRules:
    @pytest.mark.parametrize(
        "headers", [{}, GOOD, {f"x-{number}": "v" for number in range(10)}, {"x": "v" * 2047}, {"x" * 100: "v" * 1948}]
    )
    def test_good(self, headers: dict[str, str]) -> None:
        assert event_headers_fault(headers) is None

    @pytest.mark.parametrize("name", ["Authorization", "authorization", "COOKIE"])
    def test_credentials_belong_to_a_subscription(self, name: str) -> None:
        fault = event_headers_fault({name: "hush"})
        assert fault == f"must not set {name}: every subscriber would get it; credentials belong to a subscription"
        assert headers_fault({name: "hush"}) is None  # which may set it

    @pytest.mark.parametrize(
        "name",
        [
            *("Connection", "TE", "Transfer-Encoding", "HTTP2-Settings", "Host", "User-Agent", "Traceparent"),
            *("Content-Type", "Webhook-Id", "webhook-signature", "tracestate", "Proxy-Authorization"),
        ],
    )
    def test_names_that_are_not_the_callers_to_set(self, name: str) -> None:
        assert f"must not set {name}" in (event_headers_fault({name: "v"}) or "")

    def test_bounds(self) -> None:
        assert "at most 10 headers" in (event_headers_fault({f"x-{number}": "v" for number in range(11)}) or "")
        assert "at most 2048 characters in all" in (event_headers_fault({"x": "v" * 2048}) or "")
        assert "twice" in (event_headers_fault({"X-A": "1", "x-a": "2"}) or "")
        assert "X-A" in (event_headers_fault({"X-A": "hush\r\nX-B: 1"}) or "")
        assert "hush" not in (event_headers_fault({"X-A": "hush\r\nX-B: 1"}) or "")

    @given(st.dictionaries(st.text(), st.text(), max_size=3))
    def test_nothing_that_passes_is_refused_or_breaks_a_request_further_on(self, headers: dict[str, str]) -> None:
        if event_headers_fault(headers) is None:
            assert [header_fault(name) for name in headers] == [None] * len(headers)
            assert all(value.isascii() and (value.isprintable() or not value) for value in headers.values())
            assert read_event_headers(write_event_headers(headers), field="headers") == (headers or None)

    @given(JSON_TEXTS | st.text())
    def test_any_text_is_headers_or_a_fault_of_the_field(self, text: str) -> None:
        try:
            headers = read_event_headers(text, field="there")
        except InvalidInput as error:
            fields = [problem.field for problem in error.problems]
        else:
            fields = ["there"]
            assert headers is None or event_headers_fault(headers) is None
        assert fields == ["there"]

    @pytest.mark.parametrize("text", ["", "{", "[]", "1", '"x"', '{"X-A":1}', '{"X-A":["hush"]}', "[" * 9999, "\ud800"])
    def test_what_is_no_object_of_texts(self, text: str) -> None:
        with pytest.raises(InvalidInput, match=r"^there: must be a JSON object of headers") as caught:
            read_event_headers(text, field="there")
        assert caught.value.__cause__ is None
        assert "hush" not in str(caught.value)


class TestModes:
    @pytest.mark.parametrize(
        "prefix_and_value", [("cloudEvents:", TEXT), ("cloudEvents_", TEXT), ("cloudEvents:", TEXT.encode())]
    )
    def test_binary(self, prefix_and_value: tuple[str, HeaderValue]) -> None:
        prefix, value = prefix_and_value
        assert event(headers={**BINARY, f"{prefix}hookhareheaders": value}).headers == GOOD

    @pytest.mark.parametrize("content_type", [CLOUDEVENTS_JSON, None])
    @pytest.mark.parametrize("amqp_type", [None, "other"])
    def test_structured(self, content_type: str | None, amqp_type: str | None) -> None:
        body = {**STRUCTURED, "data": 1, "hookhareheaders": TEXT}
        assert event(body, content_type=content_type, type=amqp_type).headers == GOOD

    def test_a_structured_one_has_an_attribute_and_not_a_member(self) -> None:
        """`headers` there is somebody else's extension, as any other that is not ours."""
        assert event({**STRUCTURED, "headers": GOOD}, content_type=CLOUDEVENTS_JSON).headers is None

    def test_plain(self) -> None:
        read_one = event({**PLAIN, "headers": GOOD})
        assert (read_one.type, read_one.headers, read_one.data) == ("order.created", GOOD, b'{"n": 1}')

    @pytest.mark.parametrize("amqp_type", [None, "order.created", "other"])
    def test_plain_by_the_attribute(self, amqp_type: str | None) -> None:
        assert event({**PLAIN, "hookhareheaders": TEXT}, type=amqp_type).headers == GOOD

    @pytest.mark.parametrize("own_type", ["", '"type":"mail.sent",'])
    def test_with_the_property_a_body_with_headers_is_the_data(self, own_type: str) -> None:
        body = b'{%b"headers":{"From":"a@b"},"data":"mail"}' % own_type.encode()
        read_one = event(body, type="mail.came")
        assert (read_one.data, read_one.headers) == (body, None)

    @pytest.mark.parametrize("given", [{"headers": None}, {"headers": {}}, {"hookhareheaders": None}, {}])
    def test_none(self, given: dict[str, Any]) -> None:
        assert event({**PLAIN, **given}).headers is None
        assert event(headers=BINARY).headers is None

    @pytest.mark.parametrize(
        ("outcome", "field"),
        [
            (read(headers={**BINARY, "cloudEvents:hookhareheaders": "no"}), "hookhareheaders"),
            (read(headers={**BINARY, "cloudEvents:hookhareheaders": 7}), "hookhareheaders"),
            (read(headers={**BINARY, "cloudEvents:hookhareheaders": b"\xff"}), "hookhareheaders"),
            (read(headers={**BINARY, "cloudEvents:hookhareheaders": '{"Host":"x"}'}), "hookhareheaders"),
            (read({**STRUCTURED, "hookhareheaders": GOOD}), "hookhareheaders"),
            (read({**STRUCTURED, "hookhareheaders": '{"X-A":1}'}), "hookhareheaders"),
            (read({**PLAIN, "headers": TEXT}), "headers"),
            (read({**PLAIN, "headers": []}), "headers"),
            (read({**PLAIN, "headers": {"Authorization": "hush"}}), "headers"),
            (read({**PLAIN, "headers": GOOD, "hookhareheaders": TEXT}), "headers"),
        ],
    )
    def test_what_cannot_be_sent_makes_the_message_unreadable(self, outcome: Event | Unreadable, field: str) -> None:
        assert isinstance(outcome, Unreadable)
        assert outcome.field == field
        assert "hush" not in outcome.message

    @given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
    def test_each_mode_reads_the_same(self, headers: Mapping[str, str]) -> None:
        text = msgspec.json.encode(headers).decode() if _encodable(headers) else None
        if text is None:
            return
        modes = [
            read(headers={**BINARY, "cloudEvents:hookhareheaders": text}),
            read({**STRUCTURED, "hookhareheaders": text}),
            read({**PLAIN, "headers": dict(headers)}),
        ]
        if event_headers_fault(headers) is None:
            assert [one.headers for one in modes if isinstance(one, Event)] == [headers or None] * 3
        else:
            assert [one.message for one in modes if isinstance(one, Unreadable)] == [event_headers_fault(headers)] * 3


def _encodable(headers: Mapping[str, str]) -> bool:
    try:
        "".join([*headers, *headers.values()]).encode()
    except UnicodeEncodeError:
        return False
    return True


def test_unreadable_says_what_would_be_right() -> None:
    assert unreadable({**PLAIN, "headers": {"Host": "x"}}) == Unreadable(
        "headers", "must not set Host, which is set for every request, or belongs to the connection"
    )


@pytest.mark.parametrize(
    "name",
    ["webhook_id", "Content_Length", "CE_type", "X-Forwarded-For", "forwarded", "Proxy", "X_HTTP_Method"],
)
def test_names_that_a_receiver_takes_for_others_or_for_the_truth_are_refused(name: str) -> None:
    fault = event_headers_fault({name: "x"})
    assert fault is not None
    assert name in fault
