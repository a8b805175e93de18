"""Wrong keys from one address have to wait; known ones from there do not."""

from consumer_api import throttle as module
from consumer_api.throttle import Throttle

WRONG, GOOD = "hh_" + "A" * 43, "hh_" + "B" * 43
HERE, THERE = "198.51.100.1", "198.51.100.2"


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def spent(clock: Clock, per_min: int = 6) -> Throttle:
    """One that has seen as many wrong keys from here as it takes."""
    throttle = Throttle(per_min, clock)
    for _ in range(per_min):
        assert throttle.wait_s(HERE, WRONG) is None
        throttle.failed(HERE, WRONG)
    return throttle


def test_an_address_waits_after_so_many_and_gets_one_try_after_the_other_back() -> None:
    clock = Clock()
    throttle = spent(clock)
    assert throttle.wait_s(HERE, WRONG) == 10
    assert throttle.wait_s(HERE, GOOD) == 10
    assert throttle.wait_s(THERE, WRONG) is None
    clock.now_s += 9.5
    assert throttle.wait_s(HERE, WRONG) == 1
    clock.now_s += 0.5
    assert throttle.wait_s(HERE, WRONG) is None
    throttle.failed(HERE, WRONG)
    assert throttle.wait_s(HERE, WRONG) == 10
    clock.now_s += 3600
    for _ in range(6):  # it gathers no more than a minute's
        assert throttle.wait_s(HERE, WRONG) is None
        throttle.failed(HERE, WRONG)
    assert throttle.wait_s(HERE, WRONG) == 10


def test_those_who_failed_at_once_do_not_make_the_wait_longer() -> None:
    clock = Clock()
    throttle = spent(clock)
    for _ in range(100):
        throttle.failed(HERE, WRONG)
    assert throttle.wait_s(HERE, WRONG) == 10


def test_a_key_that_was_let_in_does_not_wait_until_it_is_none() -> None:
    throttle = spent(Clock())
    throttle.passed(GOOD)
    assert throttle.wait_s(HERE, GOOD) is None
    throttle.failed(HERE, GOOD)
    assert throttle.wait_s(HERE, GOOD) == 10


def test_what_is_no_key_waits_like_a_wrong_one() -> None:
    throttle = spent(Clock())
    for text in ("", "\udcff", "hh_", "x" * 10_000):
        throttle.failed(HERE, text)
        assert throttle.wait_s(HERE, text) == 10


def test_neighbours_of_ipv6_wait_together() -> None:
    throttle = Throttle(1, Clock())
    throttle.failed("2001:db8:2:3::1", WRONG)
    assert throttle.wait_s("2001:db8:2:3::2", WRONG) == 60
    assert throttle.wait_s("2001:db8:2:4::1", WRONG) is None


def test_its_memory_is_bounded_and_forgets_what_was_seen_longest_ago() -> None:
    throttle = Throttle(1, Clock())
    for number in range(module.MAX_ADDRESSES + 1):
        throttle.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", WRONG)
    assert throttle.wait_s("10.0.0.0", WRONG) is None
    assert throttle.wait_s("10.0.0.1", WRONG) == 60
    for number in range(module.MAX_KEYS + 1):
        throttle.passed(f"hh_{number:043}")
    assert throttle.wait_s("10.0.0.1", f"hh_{0:043}") == 60
    assert throttle.wait_s("10.0.0.1", f"hh_{1:043}") is None
