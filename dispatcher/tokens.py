"""Access tokens: asked for once by all who need one at a time, and kept until shortly before they expire.

A token is of a client: token URL, id, secret, scope, audience and the way that the client shows itself, all of them. So
two subscriptions share one only if they have all of that in common, and a secret that was replaced has no token.

The request goes through the egress: the same guard over where it may lead, the same care with what comes back. Its TLS
is the system's: a subscription's `tls` is for its endpoint, and a token server is another party's.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Final

from dispatcher.clock import boot_s
from dispatcher.core.credentials import FORM, MAX_ANSWER_BYTES, Granted, read_grant, token_request, token_server
from infra.egress import Egress
from infra.single_flight import SingleFlight
from schemas.deliveries import Answered, Failure, NoAnswer
from schemas.destination_auth import OAuth2Auth

_KEPT: Final = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Token:
    """An access token, until `until_s` by boot time. Each is itself: two of the same text are two."""

    grant: Granted
    until_s: float


class Tokens:
    """The tokens of a process's clients."""

    def __init__(self, egress: Egress, *, kept: int = _KEPT) -> None:
        self._egress = egress
        self._kept = kept
        self._tokens: OrderedDict[OAuth2Auth, Token] = OrderedDict()
        self._fetches: SingleFlight[OAuth2Auth, Token | NoAnswer] = SingleFlight()

    def has(self, client: OAuth2Auth) -> bool:
        """Whether `get` gives one without a wait."""
        token = self._tokens.get(client)
        return token is not None and boot_s() < token.until_s

    async def get(self, client: OAuth2Auth, *, within_s: float) -> Token | NoAnswer:
        """A token that has not expired: the one that is kept, or a new one if it comes `within_s`."""
        began_s = boot_s()
        while True:
            token = self._tokens.get(client)
            if token is not None and boot_s() < token.until_s:
                self._tokens.move_to_end(client)
                return token
            left_s = within_s - (boot_s() - began_s)
            try:
                async with asyncio.timeout(left_s):
                    got, is_ours = await self._fetches.get(client, partial(self._fetch, client, left_s))
            except TimeoutError:
                return _none(f"{token_server(client)} gave no token within {within_s:.3g} s", began_s)
            # Another one's fetch ended at that one's deadline, and there is time left until ours.
            if isinstance(got, Token) or is_ours or got.failure is not Failure.TIMEOUT:
                return got

    def drop(self, client: OAuth2Auth, token: Token) -> None:
        """The endpoint does not take this token. One that has come since is kept."""
        if self._tokens.get(client) is token:
            del self._tokens[client]

    async def close(self) -> None:
        """End every fetch."""
        await self._fetches.close()

    async def _fetch(self, client: OAuth2Auth, timeout_s: float) -> Token | NoAnswer:
        began_s = boot_s()
        headers, form = token_request(client)
        answer = await self._egress.post(
            client.token_url,
            headers=headers,
            body=form,
            content_type=FORM,
            timeout_s=timeout_s,
            keep_bytes=MAX_ANSWER_BYTES,
        )
        grant = read_grant(client, answer) if isinstance(answer, Answered) else _unreached(client, answer)
        match grant:
            case Granted():
                token = Token(grant, began_s + grant.usable_s)
                self._keep(client, token)
                return token
            case str():
                return _none(grant, began_s)
            case NoAnswer():
                return grant

    def _keep(self, client: OAuth2Auth, token: Token) -> None:
        self._tokens[client] = token
        self._tokens.move_to_end(client)
        while len(self._tokens) > self._kept:
            self._tokens.popitem(last=False)


def _unreached(client: OAuth2Auth, answer: NoAnswer) -> NoAnswer:
    # The egress speaks of whom it writes to as of an endpoint.
    reason = f"{token_server(client)} gave no token: {answer.reason.replace('the endpoint', 'the server')}"
    return NoAnswer(answer.failure, reason, answer.duration_ms, None)


def _none(reason: str, began_s: float) -> NoAnswer:
    return NoAnswer(Failure.AUTH, reason, int((boot_s() - began_s) * 1000), None)
