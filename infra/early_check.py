"""An early word about a URL that no webhook would reach: by its text, and by where its name leads now.

For whoever gives the URL, and no more than that: a name may lead elsewhere by the time of a request, and then the
egress judges, where it makes the socket.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from infra.addresses import REMEDY, forbidden_reason
from infra.egress_connector import FewAddresses
from infra.egress_rules import EgressRules, destination
from infra.settings import Settings

_LOOK_UP_S: Final = 2.0
_TRY_S: Final = 1.0
_TRIES: Final = 2


class EarlyCheck:
    """Judges URLs by the rules of this process. Open between `open_early_check`'s entry and exit."""

    def __init__(self, rules: EgressRules, resolver: FewAddresses) -> None:
        self._rules = rules
        self._resolver = resolver

    async def refusal(self, url: str) -> str | None:
        """Why no webhook goes to `url`, as the end of a sentence about it, or None. Takes two seconds at most.

        A name is refused when each of its addresses is. One that does not resolve is not: it may do so later. Behind a
        proxy names are the proxy's to look up.
        """
        if (refusal := self._rules.refusal(url)) is not None:
            return refusal
        host = destination(url).host
        if self._rules.proxy_for(host) is not None:
            return None
        try:
            async with asyncio.timeout(_LOOK_UP_S):
                found = await self._resolver.resolve(host)
        except (OSError, TimeoutError):
            return None
        reasons = [forbidden_reason(one["host"], self._rules.allow) for one in found]
        if not reasons or None in reasons:
            return None
        return f"must lead to a public address: {host} leads to a forbidden address: {reasons[0]}; {REMEDY}"


@asynccontextmanager
async def open_early_check(
    settings: Settings, *, nameservers: Sequence[str] | None = None
) -> AsyncIterator[EarlyCheck]:
    """The check of a process. `nameservers` (`host` or `host:port`) replace the system's."""
    resolver = FewAddresses(nameservers=nameservers, timeout=_TRY_S, tries=_TRIES)
    try:
        yield EarlyCheck(EgressRules.from_settings(settings), resolver)
    finally:
        await resolver.close()
