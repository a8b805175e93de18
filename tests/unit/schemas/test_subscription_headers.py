"""A subscription's own headers: which of them are secret, and the form in which they are stored."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InvalidInput, SecretUnreadable
from schemas.inputs import read_input
from schemas.subscription_headers import Header, decode_headers, encode_headers
from schemas.subscriptions import SubscriptionPatch
from tests.unit.schemas.subscription_inputs import create, problems

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
HUSH = "hush-7f"


@pytest.mark.parametrize(
    ("given", "header"),
    [
        ("v", Header("v", secret=True)),
        ({"value": "v"}, Header("v", secret=True)),
        ({"value": "v", "secret": True}, Header("v", secret=True)),
        ({"value": "v", "secret": False}, Header("v", secret=False)),
        ({"value": "", "secret": False}, Header("", secret=False)),
    ],
)
def test_a_value_is_secret_unless_it_is_said_that_it_is_not(given: object, header: Header) -> None:
    assert create(headers={"X-Key": given}).headers["X-Key"].header() == header
    patched = read_input(SubscriptionPatch, {"headers": {"X-Key": given}}).headers
    assert patched is not None
    assert patched["X-Key"].header() == header


@pytest.mark.parametrize(
    ("given", "field", "why"),
    [
        (1, "headers.X-Key", "must be text, which is taken as secret, or an object"),
        (None, "headers.X-Key", "must be text"),
        ([HUSH], "headers.X-Key", "must be text"),
        ({}, "headers.X-Key.value", "is required"),
        ({"value": 1}, "headers.X-Key.value", "string"),
        ({"value": None}, "headers.X-Key.value", "string"),
        ({"value": HUSH, "secret": "no"}, "headers.X-Key.secret", "boolean"),
        ({"value": HUSH, "secret": None}, "headers.X-Key.secret", "boolean"),
        ({"value": HUSH, "public": True}, "headers.X-Key.public", "not a known field"),
        ({"value": f"{HUSH}\n", "secret": False}, "headers", "printable ASCII as the value of X-Key"),
        ("[redacted]", "headers", "the value itself for X-Key"),
        ({"value": "[redacted]", "secret": False}, "headers", "the value itself for X-Key"),
    ],
)
def test_what_is_no_header_is_named_and_its_value_is_not_shown(given: object, field: str, why: str) -> None:
    found = problems(headers={"X-Key": given})
    assert list(found) == [field]
    assert why in found[field]
    assert HUSH not in found[field]


def test_the_same_names_are_refused_however_the_value_is_given() -> None:
    for value in ("v", {"value": "v", "secret": False}):
        with pytest.raises(InvalidInput, match="must not set Webhook-Id"):
            create(headers={"Webhook-Id": value})
    assert "twice" in problems(headers={"X-A": "1", "x-a": {"value": "2", "secret": False}})["headers"]


def test_no_value_is_shown_by_accident() -> None:
    made = create(headers={"X-Key": HUSH, "X-Open": {"value": HUSH, "secret": False}})
    shown = [repr(made), str(made), repr(made.headers), str(made.headers["X-Open"]), made.model_dump_json()]
    shown += [repr(one.header()) for one in made.headers.values()]
    assert HUSH not in " ".join(shown)


class TestStored:
    @given(st.dictionaries(TEXT, st.builds(Header, TEXT, st.booleans())))
    def test_round_trip(self, headers: dict[str, Header]) -> None:
        assert decode_headers(encode_headers(headers)) == headers

    def test_rows_from_before_there_was_a_choice_are_secret(self) -> None:
        assert decode_headers(b'{"X-Key": "v"}') == {"X-Key": Header("v", secret=True)}

    def test_the_form(self) -> None:
        stored = encode_headers({"X-Key": Header("v"), "X-Open": Header("w", secret=False)})
        assert orjson.loads(stored) == {"X-Key": "v", "X-Open": {"value": "w", "secret": False}}

    @pytest.mark.parametrize(
        "data", [b"", b"[]", b"null", b'{"a": 1}', b'{"a": {"value": "hush"}}', b'{"a": "hush', b'{"a": "\xff"}']
    )
    def test_what_is_not_that_is_unreadable_and_unseen(self, data: bytes) -> None:
        with pytest.raises(SecretUnreadable) as caught:
            decode_headers(data)
        assert "hush" not in str(caught.value)
        assert caught.value.__cause__ is None
