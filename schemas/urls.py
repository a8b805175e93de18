"""What the URL of an endpoint may look like. Where it may lead is the operator's to say: `infra/egress_rules.py`."""

import ipaddress
import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

import idna

MAX_URL_CHARS: Final = 2048

# RFC 3986's characters, less what a URL may hold only escaped.
_URL: Final = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")
_HOST: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")

# What of the rule a regular expression can say, for JSON Schemas.
URL_SCHEMA: Final = {
    "pattern": r"^[Hh][Tt][Tt][Pp][Ss]?://[A-Za-z0-9._:\[\]-]+([/?][A-Za-z0-9._~:/?\[\]@!$&'()*+,;=%-]*)?$",
    "maxLength": MAX_URL_CHARS,
}


def url_fault(text: str) -> str | None:
    """An endpoint's URL, as far as its text tells. Where it leads is for the egress guard to judge, at each request."""
    if len(text) > MAX_URL_CHARS:
        return f"must be at most {MAX_URL_CHARS} characters"
    # Before parsing: urlsplit drops tabs and line breaks without a word.
    if not _URL.fullmatch(text):
        if (written := _ascii_host(text)) is not None:
            return f"must be an ASCII URL: write its host as {written}"
        return "must be an ASCII URL, with spaces and other special characters percent-encoded"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return "must be a URL with a valid host, and a port from 1 to 65535 if it names one"
    if parts.scheme not in {"http", "https"}:
        return "must begin with https:// or http://"
    if "@" in parts.netloc:
        return "must not hold a user name or password; give credentials as auth"
    if "#" in text:
        return "must not have a fragment (#…)"
    if not _host_is_sound(parts) or port == 0 or parts.netloc.endswith(":"):
        return "must name a host, and a port from 1 to 65535 if it names one"
    return punycode_fault(parts.hostname or "")


def punycode_fault(host: str) -> str | None:
    """What is wrong with the labels of `host` that stand for other letters (`xn--…`, RFC 5891 section 5.4).

    Each must decode, and encode to itself again: readers take the others for different names, or for none. One that
    decodes to ASCII hides a plain name, or the digits of an address.
    """
    for label in host.lower().split("."):
        if label.startswith("xn--") and not _is_a_label(label):
            return f"must not have {label} in its host, which is not the punycode of any name"
    return None


def _is_a_label(label: str) -> bool:
    try:
        text = idna.ulabel(label)
        return not text.isascii() and idna.alabel(text) == label.encode("ascii")
    except UnicodeError:  # idna's own errors are such
        return False


def _ascii_host(text: str) -> str | None:
    """How the host of `text` is written in ASCII when it holds other letters, and has such a form (UTS 46)."""
    try:
        host = urlsplit(text).hostname or ""
        if host.isascii() or len(host) > 253:
            return None
        written = idna.encode(host, uts46=True).decode("ascii")
    except ValueError:  # urlsplit's; idna's own errors are UnicodeErrors, and so such
        return None
    # Full-width digits and dots come out as plain ones: whoever writes an address like that is not helped to it.
    return written if any(label.startswith("xn--") for label in written.split(".")) else None


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
