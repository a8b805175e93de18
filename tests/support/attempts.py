"""What came of a delivery, as the API shows it."""

from typing import Any

from tests.support.system import Api
from tests.support.waiting import eventually

ONCE: dict[str, list[float]] = {"delays_s": []}


async def attempts(api: Api) -> list[dict[str, Any]]:
    """Every attempt of every delivery."""
    found: list[dict[str, Any]] = []
    for delivery in await api.all("/v1/deliveries"):
        found += (await api.call("GET", f"/v1/deliveries/{delivery['id']}"))["attempts"]
    return found


async def try_out(api: Api, subscription: dict[str, Any]) -> dict[str, Any]:
    """The first attempt of a test event for the subscription."""
    delivery = await api.call("POST", f"/v1/subscriptions/{subscription['id']}/test", expect=202)
    made: list[dict[str, Any]] = []

    async def attempted() -> bool:
        made[:] = (await api.call("GET", f"/v1/deliveries/{delivery['id']}"))["attempts"]
        return bool(made)

    await eventually(attempted, deadline_s=20)
    return made[0]
