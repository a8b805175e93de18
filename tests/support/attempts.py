"""What came of a delivery, as the API shows it."""

from typing import Any

from tests.support.system import Api

ONCE: dict[str, list[float]] = {"delays_s": []}


async def attempts(api: Api) -> list[dict[str, Any]]:
    """Every attempt of every delivery."""
    found: list[dict[str, Any]] = []
    for delivery in await api.all("/v1/deliveries"):
        found += (await api.call("GET", f"/v1/deliveries/{delivery['id']}"))["attempts"]
    return found


async def try_out(api: Api, subscription: dict[str, Any]) -> dict[str, Any]:
    """The first attempt of a test event for the subscription."""
    tested = await api.call("POST", f"/v1/subscriptions/{subscription['id']}/test?wait_s=20", expect=200)
    attempt: dict[str, Any] = tested["attempt"]
    return attempt
