"""The demo itself, from an empty folder to the last replayed dead letter. It reads from top to bottom."""

import asyncio
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from hookhare.demo.api import Api, UnexpectedAnswer, open_api_client
from hookhare.demo.check import shortfalls
from hookhare.demo.guard import require_unused
from hookhare.demo.receivers import Receiver, Trouble, listening, three_receivers
from hookhare.demo.samples import Sample, Way, samples
from hookhare.demo.view import Row, View
from hookhare.dev import DevServer, dev_settings, open_dev
from infra.settings import Settings, read_settings
from producer.events import NewEvent, RawJSON
from producer.publisher import EventPublisher

_SOURCE = "hookhare/demo"
_DELIVER_S = 30  # for all first deliveries, retries included
_REPLAY_S = 15
_LOOK_EVERY_S = 0.4
_RETRY_DELAYS_S: Mapping[Trouble, Sequence[int]] = {
    Trouble.NONE: [1, 1, 1],
    Trouble.FLAKY: [1, 1, 1, 1],
    Trouble.BROKEN: [1],  # two attempts, and then it is given up
}


@dataclass(frozen=True, slots=True)
class _Subscribed:
    row: Row
    subscription_id: str


async def run_demo(*, broker_url: str | None, force: bool) -> int:
    """Run the demo and return its exit code: 0 only if everything arrived as it should."""
    console = Console(soft_wrap=True)
    started_s = time.monotonic()
    if broker_url is not None and not force:
        await require_unused(broker_url)
    with tempfile.TemporaryDirectory(prefix="hookhare-demo-", ignore_cleanup_errors=True) as home:
        settings = _settings(Path(home), broker_url)
        console.print("Starting: " + ("RabbitMQ carries the events" if broker_url else "the embedded mode") + " …")
        async with open_dev(settings) as server:
            console.print(f"The API listens on {server.api_url}, a dispatcher runs beside it.", highlight=False)
            try:
                faults = await _walk(server, console)
            except UnexpectedAnswer as error:
                faults = [str(error)]
    if faults:
        console.print(f"[bold red]Not as it should be[/]: {len(faults)} faults", highlight=False)
        for fault in faults:
            console.print(f"  {fault}", highlight=False, markup=False)
        return 1
    console.print(
        f"[bold green]All well[/], in {time.monotonic() - started_s:.0f} s. Next: `hookhare dev`.", highlight=False
    )
    return 0


def _settings(home: Path, broker_url: str | None) -> Settings:
    """Settings of a throw-away installation: nothing of the caller's is touched but the broker that was named."""
    return dev_settings(
        read_settings(
            home=str(home),
            broker_url=broker_url,
            database_url=None,
            encryption_keys=None,
            api_port=0,
            dispatcher_port=0,
            log_level="error",
        )
    )


async def _walk(server: DevServer, console: Console) -> list[str]:
    tenant = f"demo-{secrets.token_hex(4)}"  # so that what an earlier demo left in a broker is not taken for ours
    receivers = three_receivers()
    wanted = samples()
    async with listening(receivers), open_api_client(server.api_url, server.admin_key) as api:
        subscribed = [await _subscribe(api, tenant, receiver, wanted) for receiver in receivers]
        for receiver in receivers:
            patterns = " and ".join(receiver.patterns)
            console.print(
                f"  {receiver.name:<8} subscribes to {patterns:<24} answers {receiver.trouble.value}", highlight=False
            )
        published = await _publish(server, api, tenant, wanted, console)
        rows = [one.row for one in subscribed]
        with View(console, rows) as view:
            await _watch(api, subscribed, view, _settled, within_s=_DELIVER_S)
        broken = next(one for one in subscribed if one.row.receiver.trouble is Trouble.BROKEN)
        faults = await _dead_letters(api, broken, console)
        console.print(
            "The broken receiver is mended, and its dead letters are replayed (POST /v1/replays):", highlight=False
        )
        broken.row.receiver.trouble = Trouble.NONE
        replay = await api.call("POST", "replays", {"subscription_id": broken.subscription_id, "status": ["dead"]})
        with View(console, rows) as view:
            await _watch(api, subscribed, view, _delivered, within_s=_REPLAY_S)
        faults += await _replayed(api, broken, replay["id"])
        faults += [fault for receiver in receivers for fault in shortfalls(receiver, published)]
        faults += [fault for row in rows for fault in _unfinished(row)]
        if not faults:
            _boast(receivers, console)
    return faults


async def _subscribe(api: Api, tenant: str, receiver: Receiver, wanted: Sequence[Sample]) -> _Subscribed:
    created = await api.call(
        "POST",
        "subscriptions",
        {
            "tenant": tenant,
            "url": receiver.url,
            "event_types": list(receiver.patterns),
            "description": f"the {receiver.name} receiver of the demo",
            "retry_policy": {"delays_s": list(_RETRY_DELAYS_S[receiver.trouble])},
        },
    )
    receiver.secret = created["secret"]
    row = Row(receiver, sum(receiver.wants(sample.type) for sample in wanted))
    return _Subscribed(row, created["id"])


async def _publish(
    server: DevServer, api: Api, tenant: str, wanted: Sequence[Sample], console: Console
) -> Mapping[str, Sample]:
    """Publish every sample in its way; each by its public id, as the confirm told."""
    published: dict[str, Sample] = {}
    async with EventPublisher(server.broker_url, source=_SOURCE) as events:
        for sample in (sample for sample in wanted if sample.way is Way.PUBLISHER):
            event = await events.publish(sample.type, sample.data, tenant=tenant, id=sample.id)
            published[event.id] = sample
        raw = [sample for sample in wanted if sample.way is Way.PUBLISHER_RAW]
        confirmed = await events.publish_many(
            NewEvent(sample.type, RawJSON(sample.text), tenant=tenant, id=sample.id) for sample in raw
        )
        published.update(zip((event.id for event in confirmed), raw, strict=True))
    for sample in (sample for sample in wanted if sample.way is Way.API):
        # Put together by hand: json.dumps would write 1.10 as 1.1.
        body = b'{"tenant":"%b","source":"%b","id":"%b","type":"%b","data":%b}' % (
            *(text.encode() for text in (tenant, _SOURCE, sample.id, sample.type)),
            sample.text,
        )
        answer = await api.send("POST", "events", body)
        published[answer["id"]] = sample
    for way in Way:
        count = sum(sample.way is way for sample in wanted)
        console.print(f"Published and confirmed: {count} events by {way.value}", highlight=False)
    return published


async def _watch(
    api: Api, subscribed: Sequence[_Subscribed], view: View, done: Callable[[Row], bool], *, within_s: float
) -> None:
    """Look at the deliveries over the API until each receiver is `done`; what is not by then is a fault later."""
    ends_s = time.monotonic() + within_s
    while True:
        for one in subscribed:
            one.row.statuses = await api.statuses(one.subscription_id)
        view.show()
        if all(done(one.row) for one in subscribed) or time.monotonic() > ends_s:
            return
        await asyncio.sleep(_LOOK_EVERY_S)


def _settled(row: Row) -> bool:
    end = "dead" if row.receiver.trouble is Trouble.BROKEN else "delivered"
    return row.statuses[end] == row.expected


def _delivered(row: Row) -> bool:
    return row.statuses["delivered"] == row.expected


async def _dead_letters(api: Api, broken: _Subscribed, console: Console) -> list[str]:
    letters = await api.every("dead-letters", subscription_id=broken.subscription_id)
    console.print(f"Dead letters of the broken receiver: {len(letters)}", highlight=False)
    for letter in letters[:3]:
        console.print(f"  {letter['id']}  {letter['reason']}", highlight=False, markup=False)
    if len(letters) > 3:
        console.print(f"  … and {len(letters) - 3} more", highlight=False)
    if len(letters) != broken.row.expected:
        return [f"{len(letters)} dead letters instead of {broken.row.expected}"]
    return []


async def _replayed(api: Api, broken: _Subscribed, replay_id: str) -> list[str]:
    replay: Mapping[str, Any] = await api.call("GET", f"replays/{replay_id}")
    if replay["replayed"] != broken.row.expected:
        return [f"the replay has replayed {replay['replayed']} deliveries instead of {broken.row.expected}"]
    return []


def _unfinished(row: Row) -> list[str]:
    missing = row.expected - row.statuses["delivered"]
    if missing == 0 and row.statuses.total() == row.expected:
        return []
    return [f"{row.receiver.name}: the API reports {dict(row.statuses)} where {row.expected} should be delivered"]


def _boast(receivers: Sequence[Receiver], console: Console) -> None:
    posts = sum(sum(receiver.requests.values()) for receiver in receivers)
    taken = sum(len(receiver.taken) for receiver in receivers)
    console.print(
        f"{posts} POSTs, each verified by standardwebhooks; {taken} events delivered once each, "
        "their data byte for byte as published.",
        highlight=False,
    )
