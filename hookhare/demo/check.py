"""What the demo holds against what arrived. Pure: it says what is missing, and nothing when all is well."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from hookhare.demo.receivers import Receiver, Taken
from hookhare.demo.samples import Sample


def shortfalls(receiver: Receiver, published: Mapping[str, Sample]) -> Sequence[str]:
    """Every way in which `receiver` did not get what it should have; `published` has each sample by its public id."""
    return [f"{receiver.name}: {fault}" for fault in _faults(receiver, published)]


def _faults(receiver: Receiver, published: Mapping[str, Sample]) -> Iterator[str]:
    arrived: defaultdict[str, list[Taken]] = defaultdict(list)
    for taken in receiver.taken:
        arrived[taken.webhook_id].append(taken)
    for public_id, sample in published.items():
        came = arrived.pop(public_id, [])
        if not receiver.wants(sample.type):
            if came:
                yield f"{sample.type} {public_id} arrived, and was not subscribed to"
            continue
        if len(came) != 1:
            yield f"{sample.type} {public_id} ({sample.id}) was delivered {len(came)} times instead of once"
        for taken in came:
            yield from _differences(taken, sample)
    for public_id in arrived:
        yield f"{public_id} arrived, and was never published"
    for reason in receiver.unverified:
        yield f"a request could not be verified: {reason}"


def _differences(taken: Taken, sample: Sample) -> Iterator[str]:
    if taken.type != sample.type:
        yield f"{taken.webhook_id} arrived as {taken.type} and was published as {sample.type}"
    if taken.data != sample.text:
        yield f"{taken.webhook_id} ({sample.id}) has other data: {taken.data[:80]!r} instead of {sample.text[:80]!r}"
