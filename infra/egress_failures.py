"""What is said of an attempt that got no answer: every failure below the egress, in our words."""

import errno
import os
import ssl
from typing import Final

import aiohttp
import structlog
from aiohttp.http_exceptions import HttpProcessingError

from infra.addresses import REMEDY
from infra.egress_attempt import Attempt
from schemas.deliveries import Failure

_log = structlog.get_logger(__name__)

_OUR_FAULT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class ProxyFailure(Exception):
    """The outbound proxy gave no connection."""

    def __init__(self, failure: Failure, reason: str) -> None:
        super().__init__(reason)
        self.failure = failure
        self.reason = reason


def lateness(attempt: Attempt, timeout_s: float) -> tuple[Failure, str]:
    """The deadline's failure. Until the outbound proxy is reached it is our own: every endpoint waits for that."""
    limit = f"within {timeout_s:g} s"
    if attempt.proxy is None or attempt.tunnel_asked:
        return Failure.TIMEOUT, f"{_late(attempt)} {limit}"
    if attempt.address is None:
        return Failure.INTERNAL, f"the look-up of the outbound proxy {attempt.proxy} got no answer {limit}"
    return Failure.INTERNAL, f"no connection to the outbound proxy at {attempt.address} {limit}"


def _late(attempt: Attempt) -> str:
    proxy = attempt.proxy
    if attempt.status is not None:
        return f"the answer (status {attempt.status}) did not end"
    if attempt.guard is not None:
        where = attempt.guard.peer if proxy is None else f"{attempt.host} through the outbound proxy"
        return f"no answer came from {where}"
    if attempt.address is not None:
        if attempt.handshake_s is not None:
            where = f"at {attempt.address}" if proxy is None else "through the outbound proxy"
            return f"TLS with {attempt.host} {where} did not finish its handshake"
        if proxy is not None:
            return f"the outbound proxy at {attempt.address} gave no connection to {attempt.host}"
        return f"no connection to {attempt.address}"
    return f"the look-up of {attempt.host} got no answer"


def translated(error: Exception, attempt: Attempt) -> tuple[Failure, str]:
    """Every failure that is not the deadline's, in our words."""
    if attempt.guard is None:
        return _connect_failure(error, attempt)
    if attempt.guard.fault is not None:
        return Failure.INVALID_RESPONSE, f"the endpoint {attempt.guard.fault}"
    match error:
        case HttpProcessingError():
            return Failure.INVALID_RESPONSE, f"the endpoint's answer is not HTTP: {short(error.message)}"
        case aiohttp.ClientPayloadError() | aiohttp.ClientConnectionError() if attempt.status is not None:
            return Failure.DISCONNECTED, f"the connection ended within the answer (status {attempt.status})"
        case OSError(__cause__=ssl.SSLError() as fault):
            # By TLS 1.3 an endpoint judges a client's certificate, or that there is none, after the client's handshake.
            return Failure.TLS, f"{attempt.host} refused TLS: {system_words(fault)}"
        case OSError():
            return Failure.DISCONNECTED, f"the connection broke before an answer: {system_words(error)}"
        case aiohttp.ClientConnectionError():
            return Failure.DISCONNECTED, "the endpoint closed the connection without an answer"
        case _:
            return _unforeseen(error)


def _connect_failure(error: Exception, attempt: Attempt) -> tuple[Failure, str]:
    host = attempt.host
    if attempt.forbidden is not None:
        via = "" if attempt.forbidden.startswith(f"{host} ") else f"{host} leads to a forbidden address: "
        return Failure.FORBIDDEN_ADDRESS, (f"{via}{attempt.forbidden}; {REMEDY}")
    match error:
        case ProxyFailure():
            return error.failure, error.reason
        case aiohttp.ClientConnectorDNSError():
            return Failure.DNS, f"{host} does not resolve: {system_words(error.os_error)}"
        case aiohttp.ClientConnectorCertificateError(certificate_error=ssl.SSLCertVerificationError() as fault):
            return Failure.TLS, f"the certificate of {host} is not trusted: {fault.verify_message}"
        case aiohttp.ClientConnectorSSLError() | aiohttp.ClientConnectorCertificateError():
            return Failure.TLS, f"TLS with {host} failed: {system_words(error.os_error)}"
        case aiohttp.ClientConnectorError() if error.os_error.errno in _OUR_FAULT:
            return Failure.INTERNAL, f"this dispatcher is short of resources: {system_words(error.os_error)}"
        case aiohttp.ServerDisconnectedError():
            return Failure.DISCONNECTED, f"{host} closed the connection before the request was sent"
        case aiohttp.ClientConnectorError():
            return Failure.CONNECT, f"no connection to {attempt.address}: {system_words(error.os_error)}"
        case _:
            return _unforeseen(error)


def _unforeseen(error: Exception) -> tuple[Failure, str]:
    _log.error("egress.unforeseen", exc_info=error)
    return Failure.INTERNAL, f"unforeseen: {type(error).__name__}"


def system_words(error: OSError) -> str:
    """What the system or OpenSSL says, without what the libraries between wrap around it."""
    text: str | None
    if isinstance(error, ssl.SSLError):
        text = error.reason.replace("_", " ") if error.reason else None
    else:
        text = os.strerror(error.errno) if error.errno else error.strerror
    return short(text or str(error) or type(error).__name__).lower()


def short(text: str) -> str:
    # Endpoints have a say in it: nothing that a terminal, a log or PostgreSQL would stumble over.
    flat = " ".join("".join(letter if letter.isprintable() else " " for letter in text[:1000]).split())
    return flat if len(flat) <= 200 else f"{flat[:200]}…"
