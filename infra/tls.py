"""TLS for endpoints that ask for more than the system's: a client certificate, a certificate authority of their own.

Making a context takes about 20 ms and blocks, so it is done in a thread, once for each distinct `tls`, and the latest
ones are kept. A context is the identity of its connections: aiohttp's pool gives out a connection only to a request
with the very same one, so what was replaced is not used again.

OpenSSL takes a client's key only from a file. It gets one that exists in memory alone (memfd), or, where there is none
of that kind, a temporary one that only we can read and that is gone when the context stands.
"""

import asyncio
import os
import ssl
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infra.single_flight import SingleFlight
from schemas.destination_auth import Tls

_KEPT: Final = 256
_OPEN_FILES: Final = Path("/proc/self/fd")


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why no context can be made, as the end of a sentence."""

    reason: str


class Contexts:
    """The contexts of this event loop's endpoints: the latest `kept` of them, each made once."""

    __slots__ = ("_flights", "_kept", "_made")

    def __init__(self, *, kept: int = _KEPT) -> None:
        self._kept = kept
        self._made: OrderedDict[Tls, ssl.SSLContext] = OrderedDict()
        self._flights: SingleFlight[Tls, ssl.SSLContext | Unusable] = SingleFlight()

    def has(self, tls: Tls) -> bool:
        """Whether `get` gives one without a wait."""
        return tls in self._made

    async def get(self, tls: Tls) -> ssl.SSLContext | Unusable:
        """The context for `tls`: the same one for the same content, as long as it is kept."""
        context = self._made.get(tls)
        if context is not None:
            self._made.move_to_end(tls)
            return context
        made, _ = await self._flights.get(tls, lambda: self._make(tls))
        return made

    async def close(self) -> None:
        """End what is being made."""
        await self._flights.close()

    async def _make(self, tls: Tls) -> ssl.SSLContext | Unusable:
        made = await asyncio.to_thread(make_context, tls)
        if not isinstance(made, Unusable):
            self._made[tls] = made
            while len(self._made) > self._kept:
                self._made.popitem(last=False)
        return made


def make_context(tls: Tls) -> ssl.SSLContext | Unusable:
    """A client's context, TLS 1.2 at least: endpoints are verified, against `ca` alone if that is given. Blocks."""
    try:
        context = ssl.create_default_context(cadata=tls.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if tls.client_certificate is not None and tls.client_key is not None:
            key = tls.client_key.get_secret_value()
            with _file(f"{key}\n{tls.client_certificate}\n".encode("ascii")) as path:
                # Without a password of ours OpenSSL would ask for one at the terminal.
                context.load_cert_chain(path, password="")
    except ssl.SSLError as error:
        said = error.reason.replace("_", " ").lower() if error.reason else "no reason given"
        return Unusable(f"OpenSSL refuses its certificates or its key: {said}")
    except (OSError, ValueError) as error:
        return Unusable(f"its certificates cannot be loaded: {type(error).__name__}")
    return context


@contextmanager
def _file(content: bytes) -> Iterator[str]:
    """The path of a file with `content`, which nobody else can read and which does not outlive the block."""
    if hasattr(os, "memfd_create") and _OPEN_FILES.is_dir():
        descriptor = os.memfd_create("hookhare-tls", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            yield str(_OPEN_FILES / str(descriptor))
        return
    with tempfile.NamedTemporaryFile() as file:  # of mode 0600
        file.write(content)
        file.flush()
        yield file.name
