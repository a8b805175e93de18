"""An encryption key that is lost holds, but loses nothing. That no secret is told: test_canaries.py."""

from infra.crypto import new_key
from tests.support.receivers import Receiver
from tests.support.system import Api, System
from tests.support.waiting import eventually


async def test_no_secret_of_any_scheme_stands_in_clear(
    system: System, api: Api, receiver: Receiver, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor one that signs no more, and is kept."""
    made = await api.subscribe(receiver.url("/hook"), signature={"scheme": "standard", "versions": ["v1", "v1a"]})
    path = f"/v1/subscriptions/{made['id']}"
    signature = {"scheme": "hmac", "algorithm": "sha256", "header": "X-Signature"}
    text = await api.call("PATCH", path, {"signature": signature})
    given = await api.call("POST", f"{path}/rotate-secret", {"secret": f"{CANARY} of the receiver"})
    marked = [one["secret"].partition("_")[2] for one in made["secrets"]] + [text["secret"], given["secret"]]
    log = tmp_path / "dispatcher.log"
    async with DispatcherProcess(system, log), system.publisher() as publisher:
        await publisher.publish("order.created", {"n": 1})
        (request,) = await receiver.wait_for(1)
        await system.settled({"delivered": 1})
    assert request.headers["x-signature"].count(",") == 1  # both of them signed
    rows = await system.fetch("SELECT to_jsonb(s)::text, encode(secrets, 'escape') FROM subscriptions AS s")
    shown = str([tuple(row) for row in rows]) + log.read_text()
    shown += str(await api.all("/v1/subscriptions")) + str(await api.call("GET", path))
    shown += str(await api.call("PATCH", path, {"description": "x"}))
    bad = {"signature": signature | {"prefix": "\n"}, "secret": f"{CANARY}\n"}
    shown += str(
        await api.call("POST", "/v1/subscriptions", {"url": made["url"], "event_types": ["#"]} | bad, expect=400)
    )
    shown += str(await api.call("POST", f"{path}/rotate-secret", {"secret": f"{CANARY}\n"}, expect=400))
    captured = capfd.readouterr()  # the API's log
    shown += captured.out + captured.err
    for one in (*marked, CANARY):
        assert one not in shown


async def test_a_subscription_that_cannot_be_decrypted_is_held_with_that_reason(
    system: System, api: Api, receiver: Receiver
) -> None:
    await api.subscribe(receiver.url("/hook"))
    async with system.publisher() as publisher:
        async with system.dispatcher(encryption_keys=new_key()):
            await publisher.publish("order.created", {"n": 1})

            async def held() -> bool:
                reason = await system.value("SELECT reason FROM deliveries WHERE status = 'held'")
                return reason is not None and "cannot be decrypted" in reason

            await eventually(held)
        assert not receiver.requests
        async with system.dispatcher():
            await system.settled({"delivered": 1})
