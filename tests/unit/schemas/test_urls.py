"""What an endpoint's URL may be, as far as its text tells."""

import pytest
import yarl
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.urls import url_fault
from tests.unit.schemas.subscription_inputs import problems


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
            "https://XN--BCHER-KVA.example/",
            "https://xn--fa-hia.de/",
            "https://www.xn--fiqs8s/",
            "https://a--b.example/",
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
            ("https://BÜCHER.example:8443/x", "write its host as xn--bcher-kva.example"),
            ("https://faß.de/", "write its host as xn--fa-hia.de"),
            ("https://中国/", "write its host as xn--fiqs8s"),
            ("https://①②⑦.⓪.⓪.①/", "ASCII URL, with"),
            ("https://127。0。0。1/", "ASCII URL, with"),
            ("https://ⓔxample.com/", "ASCII URL, with"),
            ("https://☃.net/", "ASCII URL, with"),
            ("https://" + "ü" * 254 + ".example/", "ASCII URL, with"),
            ("https://xn--a.example/", "must not have xn--a in its host"),
            ("https://xn--abc-.example/", "must not have xn--abc- in its host"),
            ("https://www.xn--127-.0.0.1/", "punycode"),
            ("https://xn--/", "punycode"),
            ("https://xn--n3h.net/", "punycode"),
            ("https://xn--999999999.example/", "punycode"),
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
