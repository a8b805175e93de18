"""`/openapi.json` and `/docs`: told without a key, and made of nothing but what is served here."""

import re
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

from tests.support.api import ApiClient


class _Named(HTMLParser):
    """Every address that a page names, and whether it has scripts or styles of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [value for name, value in attrs if name in {"src", "href"} and value]
        self.inline += [name for name in given if name.startswith("on") or name == "style"]
        if (tag == "script" and "src" not in given) or tag == "style":
            self.inline.append(tag)


async def test_the_document_is_told_without_a_key_and_once(api: ApiClient) -> None:
    first = await api.call("GET", "/openapi.json", key="")
    assert (first.status, first.body["openapi"]) == (200, "3.1.0")
    assert first.headers["Content-Type"] == "application/json"
    etag = first.headers["ETag"]
    again = await api.call("GET", "/openapi.json", key="", headers={"If-None-Match": etag})
    assert (again.status, again.raw, again.headers["ETag"]) == (304, b"", etag)
    other = await api.call("GET", "/openapi.json", key="", headers={"If-None-Match": '"another"'})
    assert (other.status, other.raw) == (200, first.raw)


async def test_the_page_and_all_that_it_names_come_from_here(api: ApiClient) -> None:
    page = await api.call("GET", "/docs", key="")
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html")
    named = _Named()
    named.feed(page.raw.decode())
    assert len(named.addresses) == 4
    assert named.inline == []
    for address in named.addresses:
        assert not urlsplit(address).netloc, address
        file = await api.call("GET", urlsplit(urljoin(f"{api.url}/docs", address)).path, key="")
        assert (file.status, len(file.raw) > 100) == (200, True), address
        assert file.headers["X-Content-Type-Options"] == "nosniff"
        if address.endswith(".css"):
            outside = re.findall(rb"url\((?![\"']?data:)|@import", file.raw)
            assert outside == []
        if address.endswith("initialize.js"):
            text = file.raw.decode()
            assert re.search(r'url: "openapi\.json"', text)
            assert "validatorUrl: null" in text  # or the document would be sent to a service on the internet
            assert "://" not in text


async def test_the_page_may_load_nothing_from_elsewhere(api: ApiClient) -> None:
    policy = (await api.call("GET", "/docs", key="")).headers["Content-Security-Policy"]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    assert rules["default-src"] == ["'none'"]
    assert {source for sources in rules.values() for source in sources} == {"'none'", "'self'", "data:"}
    assert rules["img-src"] == ["'self'", "data:"]


async def test_no_other_file_is_served(api: ApiClient) -> None:
    for name in ("index.html", "LICENSE", "..%2f..%2fapp.py", "%2e%2e/app.py", "x"):
        answer = await api.call("GET", f"/docs/{name}", key="")
        assert (answer.status, answer.code) == (404, "not_found"), name
