"""What a subscription's URL, event types and headers may be: tables of what passes and what does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.headers import headers_fault
from schemas.subscription_headers import Header
from schemas.subscriptions import pattern_fault
from tests.unit.schemas.subscription_inputs import create, problems


class TestEventTypes:
    @pytest.mark.parametrize(
        "pattern", ["*", "#", "a", "order.created", "a.*.b", "#.a.#", "#.#", "a-b_c:d/e.1", "a" * 200]
    )
    def test_good(self, pattern: str) -> None:
        assert pattern_fault(pattern) is None
        assert create(event_types=[pattern]).event_types == (pattern,)

    @pytest.mark.parametrize(
        "pattern",
        ["", ".", "a.", ".a", "a..b", "a*", "**", "##", "a.#b", "a b", "a\n", "é", "a" * 201, "a\x00", "\ud800"],
    )
    def test_bad(self, pattern: str) -> None:
        assert "'*' (any one word)" in (pattern_fault(pattern) or "")
        assert list(problems(event_types=["fine", pattern])) == ["event_types.1"]

    @pytest.mark.parametrize("value", [[], "order.*", None, {"a": 1}, ["a"] * 2, [f"t{n}" for n in range(101)]])
    def test_bad_lists(self, value: object) -> None:
        assert list(problems(event_types=value)) == ["event_types"]

    def test_only_the_member_is_named_when_it_is_the_only_one(self) -> None:
        """Pydantic adds that the list is too short, having dropped the member: that would mislead."""
        assert list(problems(event_types=["a..b"])) == ["event_types.0"]


class TestHeaders:
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Authorization": "Bearer abc"},
            {"X-Empty": ""},
            {"x!#$%&'*+-.^_`|~9": "a  b"},
            {f"x-{n}": "v" for n in range(20)},
            {"x" * 100: "v" * 2048},
        ],
    )
    def test_good(self, headers: dict[str, str]) -> None:
        assert headers_fault(headers) is None
        assert {name: one.header() for name, one in create(headers=headers).headers.items()} == {
            name: Header(value) for name, value in headers.items()
        }

    @pytest.mark.parametrize(
        "name",
        [
            *("Connection", "keep-alive", "Proxy-Authorization", "TE", "Trailer", "Transfer-Encoding", "Upgrade"),
            *("Host", "HOST", "Content-Type", "content-length", "Content-Anything", "webhook-id", "Webhook-Signature"),
            *("User-Agent", "traceparent", "tracestate", "Expect"),
        ],
    )
    def test_names_that_are_not_the_callers_to_set(self, name: str) -> None:
        assert headers_fault({name: "v"}) == (
            f"must not set {name}, which is set for every request, or belongs to the connection"
        )

    @pytest.mark.parametrize("name", ["", " ", "a b", "a:", "a\r\nb", "é", "a\x00", "(a)", "a/b", "x" * 101])
    def test_malformed_names(self, name: str) -> None:
        assert "must have names of" in problems(headers={name: "v"})["headers"]

    @pytest.mark.parametrize(
        "value", ["hush\r\nX-Evil: 1", "hush\n", "hush\x00", "hush\t", "hüsh", " hush", "hush ", " ", "hush" * 513]
    )
    def test_values_that_are_refused_are_not_shown(self, value: str) -> None:
        fault = problems(headers={"X-Key": value})["headers"]
        assert "X-Key" in fault
        assert "hush" not in fault

    def test_the_whole_is_bounded_and_no_name_is_there_twice(self) -> None:
        assert "at most 20" in problems(headers={f"x-{n}": "v" for n in range(21)})["headers"]
        assert "8192 characters in all" in problems(headers={f"x-{n}": "v" * 2000 for n in range(5)})["headers"]
        assert "twice" in problems(headers={"X-A": "1", "x-a": "2"})["headers"]

    @pytest.mark.parametrize("value", [1, None, ["v"], True])
    def test_values_that_are_no_text(self, value: object) -> None:
        assert list(problems(headers={"X-Key": value})) == ["headers.X-Key"]

    @given(st.dictionaries(st.text(), st.text(), max_size=3))
    def test_nothing_that_passes_can_break_a_request(self, headers: dict[str, str]) -> None:
        if headers_fault(headers) is None:
            wire = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("ascii")
            assert wire.count(b"\r") == wire.count(b"\n") == len(headers)
            assert b"\x00" not in wire
