"""The demo must be able to fail: every kind of shortfall is seen."""

import pytest

from hookhare.demo.check import shortfalls
from hookhare.demo.receivers import Receiver, Taken, Trouble, three_receivers
from hookhare.demo.samples import Sample, Way, samples

ORDER = Sample("1", "order.created", Way.API, b"1.10")
STOCK = Sample("2", "stock.low", Way.API, b"{}")
PUBLISHED = {"evt_1": ORDER, "evt_2": STOCK}


def receiver(*taken: Taken) -> Receiver:
    return Receiver("orders", ["order.#"], ("order.",), Trouble.NONE, taken=list(taken))


def test_all_is_well() -> None:
    assert shortfalls(receiver(Taken("evt_1", "order.created", b"1.10")), PUBLISHED) == []


@pytest.mark.parametrize(
    ("taken", "fault"),
    [
        ([], "delivered 0 times instead of once"),
        ([Taken("evt_1", "order.created", b"1.10")] * 2, "delivered 2 times instead of once"),
        ([Taken("evt_1", "order.created", b"1.1")], "has other data: b'1.1' instead of b'1.10'"),
        ([Taken("evt_1", "order.shipped", b"1.10")], "arrived as order.shipped"),
        ([Taken("evt_1", "order.created", b"1.10"), Taken("evt_2", "stock.low", b"{}")], "was not subscribed to"),
        ([Taken("evt_1", "order.created", b"1.10"), Taken("evt_3", "order.created", b"{}")], "was never published"),
    ],
)
def test_a_shortfall_is_seen(taken: list[Taken], fault: str) -> None:
    (said,) = shortfalls(receiver(*taken), PUBLISHED)
    assert said.startswith("orders: ")
    assert fault in said


def test_what_could_not_be_verified_is_a_shortfall() -> None:
    suspicious = receiver(Taken("evt_1", "order.created", b"1.10"))
    suspicious.unverified.append("WebhookVerificationError: No matching signature found")
    assert len(shortfalls(suspicious, PUBLISHED)) == 1


def test_the_samples_are_a_few_dozen_and_each_receiver_wants_some() -> None:
    made = samples()
    assert 24 <= len(made) <= 60
    assert len({sample.id for sample in made}) == len(made)
    assert {sample.way for sample in made} == set(Way)
    for one in three_receivers():
        assert sum(one.wants(sample.type) for sample in made) >= 10
