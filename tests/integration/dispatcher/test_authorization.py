"""What an attempt does about what it could not get ready, or not in time."""

from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from dispatcher.authorization import Authorization
from dispatcher.breakers import Breakers
from dispatcher.caps import Caps
from dispatcher.claims import Claims
from dispatcher.core.breaker import BreakerPolicy
from dispatcher.core.conclude import Held
from dispatcher.delivery import Deliverer, _Post
from dispatcher.heartbeat import Heartbeat
from dispatcher.index import SubscriptionIndex
from dispatcher.paces import Paces
from infra.egress import open_egress
from infra.settings import read_settings
from infra.telemetry import Telemetry
from schemas.deliveries import Answered, Failure, NoAnswer
from tests.support.certificates import NO_TLS, Authority
from tests.support.receivers import Receiver
from tests.support.seed import Seed
from tests.support.system import ANY_URL
from tests.support.tls_receiver import tls_receiver

SETTINGS = read_settings(egress_allow="127.0.0.0/8", **ANY_URL)
POLICY = BreakerPolicy(window_s=60, min_attempts=100, failure_ratio=0.8, timeouts=10, rest_s=15, longest_rest_s=600)
BEARER = {"Authorization": "Bearer t"}


@pytest.mark.parametrize("lapsed", [True, False])
async def test_a_dispatcher_that_lapsed_while_it_waited_for_a_token_sends_nothing_with_it(
    claims: Claims,
    seed: Seed,
    index: SubscriptionIndex,
    heartbeat: Heartbeat,
    telemetry: Telemetry,
    receiver: Receiver,
    lapsed: bool,
) -> None:
    subscription = await seed.subscription(mode="held", feeder=heartbeat.incarnation, url=receiver.url("/hook"))
    await seed.delivery(subscription)
    (claim,) = (await claims.held({subscription: 1})).claims
    endpoint = index.get(subscription)
    assert endpoint is not None
    if lapsed:
        heartbeat._lapsed_s = claim.claimed_s + 1  # as its next renewal would find
    async with open_egress(SETTINGS, tls=NO_TLS) as egress:
        deliverer = Deliverer(
            index,
            egress,
            heartbeat,
            cast(Any, None),
            Paces(ahead_s=0.5),
            Breakers(POLICY, telemetry),
            Caps(most_at_once=1),
            telemetry,
            cast(Any, None),
            Authorization(egress),
        )
        result = await deliverer._send(_Post(endpoint, claim, None), BEARER, None, 5, True)
    if lapsed:
        assert isinstance(result, Held)
        assert not receiver.requests
    else:
        assert isinstance(result, Answered)
        (request,) = receiver.requests
        assert request.headers["authorization"] == "Bearer t"
        assert "webhook-signature" in request.headers


async def test_an_endpoints_own_authority_is_not_its_token_servers(
    claims: Claims, seed: Seed, index: SubscriptionIndex, tmp_path: Path
) -> None:
    authority = Authority()
    with tls_receiver(authority.issue("server").server_tls(tmp_path)) as server:
        auth = {"type": "oauth2", "token_url": server.url, "client_id": "c", "client_secret": "s"}
        subscription = await seed.subscription(
            auth=seed.vault.encrypt(orjson.dumps(auth)), tls=seed.vault.encrypt(orjson.dumps({"ca": authority.pem}))
        )
        await claims.held({subscription: 1})
        endpoint = index.get(subscription)
        assert endpoint is not None
        async with open_egress(SETTINGS) as egress:
            authorization = Authorization(egress)
            result = await authorization.through(endpoint, cast(Any, None), timeout_s=5)
            await authorization.close()
    assert isinstance(result, NoAnswer)
    assert result.failure is Failure.AUTH
    assert "gave no token: the certificate of 127.0.0.1 is not trusted" in result.reason
    assert server.clients == []


async def test_certificates_that_cannot_be_used_any_more_are_an_outcome_with_the_reason(
    claims: Claims, seed: Seed, index: SubscriptionIndex
) -> None:
    """The API refuses them; these were stored by another release, or with another OpenSSL."""
    authority = Authority()
    tls = {"client_certificate": authority.issue("a").certificate, "client_key": authority.issue("b").key}
    subscription = await seed.subscription(tls=seed.vault.encrypt(orjson.dumps(tls)))
    await claims.held({subscription: 1})
    endpoint = index.get(subscription)
    assert endpoint is not None
    async with open_egress(SETTINGS, tls=NO_TLS) as egress:
        authorization = Authorization(egress)
        result = await authorization.through(endpoint, cast(Any, None), timeout_s=5)
        await authorization.close()
    assert isinstance(result, NoAnswer)
    assert result.failure is Failure.TLS
    assert result.reason == ("TLS cannot be set up: OpenSSL refuses its certificates or its key: key values mismatch")
