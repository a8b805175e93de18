"""What a subscription's URL, event types and headers may be: tables of what passes and what does not."""

import pytest
import yarl
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.headers import headers_fault
from schemas.subscription_headers import Header
from schemas.subscriptions import pattern_fault, url_fault
from tests.unit.schemas.subscription_inputs import create, problems


class TestUrl:
    @pytest.mark.parametrize(
        "url",
        [
            "https://example.com",
            "http://example.com:8080/a/b?c=d&e=%20#"[:-1],
            "HTTPS://EXAMPLE.com/",
            "http://localhost:1/",
            "http://service_one/hook",
            "http://127.0.0.1:65535/",
            "http://[::1]:8080/hook",
            "http://[2001:db8::1]/",
            "https://example.com./hook",
            "https://xn--bcher-kva.example/",
            "https://example.com/~a/b;c=1,2/@x:y/(z)!$&'*+",
            "https://example.com?x=1",
            "https://" + "a" * 63 + ".example/" + "p" * 1900,
        ],
    )
    def test_good(self, url: str) -> None:
        assert url_fault(url) is None

    @pytest.mark.parametrize(
        ("url", "why"),
        [
            ("", "ASCII URL"),
            ("example.com/hook", "begin with https://"),
            ("//example.com/hook", "begin with https://"),
            ("ftp://example.com/", "begin with https://"),
            ("javascript:alert(1)", "begin with https://"),
            ("file:///etc/passwd", "begin with https://"),
            ("https:///hook", "name a host"),
            ("https:hook", "name a host"),
            ("https://:443/", "name a host"),
            ("https://example.com:/", "port"),
            ("https://example.com:0/", "port"),
            ("https://example.com:65536/", "port"),
            ("https://example.com:x/", "port"),
            ("https://example.com:-1/", "port"),
            ("https://user@example.com/", "user name"),
            ("https://user:secret@example.com/", "user name"),
            ("https://example.com/#part", "fragment"),
            ("https://example.com/#", "fragment"),
            ("https://bücher.example/", "ASCII"),
            ("https://example.com/a b", "percent-encoded"),
            ("https://example.com/a\tb", "percent-encoded"),
            ("https://exam\nple.com/", "percent-encoded"),
            ("https://example.com/\r\nX: y", "percent-encoded"),
            ("https://example.com/\x00", "percent-encoded"),
            ("https://example.com\\@evil.example/", "percent-encoded"),
            ("https://example.com/%zz", "percent-encoded"),
            ("https://example.com/%2", "percent-encoded"),
            ("https://exa%6Dple.com/", "name a host"),
            ("https://example..com/", "name a host"),
            ("https://.example.com/", "name a host"),
            ("https://" + "a" * 64 + ".com/", "name a host"),
            ("https://" + ".".join(["a" * 60] * 5) + "/", "name a host"),
            ("https://exa$mple.com/", "name a host"),
            ("https://[::1/", "valid host"),
            ("https://[::g]/", "host"),
            ("https://[127.0.0.1]/", "host"),
            ("https://[fe80::1%25eth0]/", "host"),
            ("https://[::1]x/", "host"),
            ("https://a[::1]/", "host"),
            ("https://[v1.x]/", "host"),
            ("https://example.com/" + "p" * 2048, "2048 characters"),
        ],
    )
    def test_bad(self, url: str, why: str) -> None:
        fault = url_fault(url)
        assert fault is not None
        assert why in fault
        assert problems(url=url)["url"] == fault

    @given(
        st.one_of(
            st.text(),
            st.from_regex(r"https?://[!-~]{0,30}", fullmatch=True),
            st.from_regex(r"https?://[a-z0-9.:\[\]@%-]{1,20}(/[!-~]{0,10})?", fullmatch=True),
        )
    )
    @example("http://[::1]\t:80")
    def test_what_passes_means_the_same_to_the_http_client(self, url: str) -> None:
        """The client parses by rules of its own: it must take what we took, and see no other host, port or user."""
        if url_fault(url) is not None:
            return
        parsed = yarl.URL(url)
        host = parsed.raw_host
        assert host is not None
        assert f"//{url.partition('//')[2]}".lower().replace("[", "").startswith(f"//{host.lower()}")
        assert parsed.scheme in {"http", "https"}
        assert parsed.user is None
        assert parsed.password is None
        assert parsed.port is not None
        assert 1 <= parsed.port <= 65_535


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
