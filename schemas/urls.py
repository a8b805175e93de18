"""What the URL of an endpoint may look like."""

import ipaddress
import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

MAX_URL_CHARS: Final = 2048

# RFC 3986's characters, less what a URL may hold only escaped.
_URL: Final = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")
_HOST: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")


def url_fault(text: str) -> str | None:
    """An endpoint's URL, as far as its text tells. Where it leads is for the egress guard to judge, at each request."""
    if len(text) > MAX_URL_CHARS:
        return f"must be at most {MAX_URL_CHARS} characters"
    # Before parsing: urlsplit drops tabs and line breaks without a word.
    if not _URL.fullmatch(text):
        return "must be an ASCII URL, with spaces and other special characters percent-encoded"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return "must be a URL with a valid host, and a port from 1 to 65535 if it names one"
    if parts.scheme not in {"http", "https"}:
        return "must begin with https:// or http://"
    if "@" in parts.netloc:
        return "must not hold a user name or password; send credentials in a header"
    if "#" in text:
        return "must not have a fragment (#…)"
    if not _host_is_sound(parts) or port == 0 or parts.netloc.endswith(":"):
        return "must name a host, and a port from 1 to 65535 if it names one"
    return None


def _host_is_sound(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    if "[" not in parts.netloc:
        return _HOST.fullmatch(host) is not None
    if "%" in host or not re.fullmatch(r"\[[^\[\]]+\](?::[0-9]+)?", parts.netloc):
        return False
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True
