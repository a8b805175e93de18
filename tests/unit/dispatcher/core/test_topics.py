"""Topic matching: a table of AMQP's rules, and the index against a matcher that is too simple to be wrong."""

import time
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from dispatcher.core.topics import TopicIndex, matches

WORDS = st.sampled_from(["a", "b", "c"])
TYPES = st.lists(WORDS, min_size=1, max_size=6).map(".".join)
PATTERNS = st.lists(st.sampled_from(["a", "b", "*", "#", "#"]), min_size=1, max_size=6).map(".".join)
KEYS = st.integers(0, 4)


def naive(pattern: list[str], words: list[str]) -> bool:
    """The rules as they are told, word by word."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(naive(pattern[1:], words[taken:]) for taken in range(len(words) + 1))
    return bool(words) and pattern[0] in {"*", words[0]} and naive(pattern[1:], words[1:])


@pytest.mark.parametrize(
    ("pattern", "event_type", "expected"),
    [
        ("order.created", "order.created", True),
        ("order.created", "order.updated", False),
        ("order", "order.created", False),
        ("order.created", "order", False),
        ("Order", "order", False),
        ("*", "order", True),
        ("*", "order.created", False),
        ("order.*", "order", False),
        ("order.*", "order.created", True),
        ("order.*", "order.created.eu", False),
        ("*.created", "order.created", True),
        ("order.*.eu", "order.created.eu", True),
        ("#", "order", True),
        ("#", "order.created.eu", True),
        ("order.#", "order", True),
        ("order.#", "order.created.eu", True),
        ("order.#", "orders", False),
        ("#.eu", "eu", True),
        ("#.eu", "order.created.eu", True),
        ("#.eu", "order.eu.created", False),
        ("order.#.eu", "order.eu", True),
        ("order.#.eu", "order.a.b.eu", True),
        ("#.created.#", "created", True),
        ("#.created.#", "a.created.b", True),
        ("#.created.#", "a.b", False),
        ("#.#", "order", True),
        ("#.#.#", "order", True),
        ("order.#.#", "order", True),
        ("order.#.#.#.eu", "order.eu", True),
        ("*.#", "order", True),
        ("#.*", "order", True),
        ("*.#.*", "order", False),
        ("*.#.*", "order.created", True),
    ],
)
def test_amqp_topics(pattern: str, event_type: str, *, expected: bool) -> None:
    assert matches(pattern, event_type) is expected
    assert naive(pattern.split("."), event_type.split(".")) is expected


@given(PATTERNS, TYPES)
def test_one_pattern_agrees_with_the_naive_matcher(pattern: str, event_type: str) -> None:
    assert matches(pattern, event_type) is naive(pattern.split("."), event_type.split("."))


class IndexAgainstNaive(RuleBasedStateMachine):
    """Any order of adding, removing and matching; what was removed leaves nothing behind."""

    added: Bundle[tuple[str, int]] = Bundle("added")

    def __init__(self) -> None:
        super().__init__()
        self.index: TopicIndex[int] = TopicIndex()
        self.model: dict[int, set[str]] = defaultdict(set)

    @rule(target=added, pattern=PATTERNS, key=KEYS)
    def add(self, pattern: str, key: int) -> tuple[str, int]:
        self.index.add(pattern, key)
        self.model[key].add(pattern)
        return pattern, key

    @rule(one=added)
    def remove(self, one: tuple[str, int]) -> None:
        pattern, key = one
        self.index.remove(pattern, key)
        self.model[key].discard(pattern)

    @rule(pattern=PATTERNS, key=KEYS)
    def remove_anything(self, pattern: str, key: int) -> None:
        self.remove((pattern, key))

    @rule(event_type=TYPES)
    def match(self, event_type: str) -> None:
        words = event_type.split(".")
        expected = {key for key, patterns in self.model.items() if any(naive(p.split("."), words) for p in patterns)}
        assert self.index.match(event_type) == expected

    @invariant()
    def an_empty_index_is_as_new(self) -> None:
        if not any(self.model.values()):
            assert not self.index._exact
            assert not self.index._root.next


TestIndexAgainstNaive = IndexAgainstNaive.TestCase


def test_what_is_matched_is_the_callers_to_change() -> None:
    index: TopicIndex[int] = TopicIndex()
    index.add("a", 1)
    index.add("#", 2)
    index.match("a").clear()
    assert index.match("a") == {1, 2}


def test_no_pattern_can_make_matching_explode() -> None:
    """A backtracking matcher needs longer than the age of the universe for this."""
    index: TopicIndex[int] = TopicIndex()
    index.add(".".join(["#", "a"] * 49), 1)
    index.add(".".join(["#", "*"] * 49 + ["b"]), 2)
    began = time.process_time()
    assert index.match(".".join(["a"] * 99)) == {1}
    assert time.process_time() - began < 1


def test_a_hundred_thousand_exact_types_cost_one_look_up() -> None:
    index: TopicIndex[int] = TopicIndex()
    for number in range(100_000):
        index.add(f"type.{number}", number)
    assert index.match("type.4711") == {4711}
    assert index.match("type") == set()


@pytest.mark.parametrize(
    ("pattern", "event_type", "expected"),
    [
        ("#", "hookhare.subscription.created", False),
        ("*.#", "hookhare.subscription.created", False),
        ("*.*.*", "hookhare.subscription.created", False),
        ("#.created", "hookhare.subscription.created", False),
        ("#.hookhare.#", "hookhare.subscription.created", False),
        ("#", "hookhare", False),
        ("*", "hookhare", False),
        ("hookhare", "hookhare", True),
        ("hookhare.#", "hookhare", True),
        ("hookhare.#", "hookhare.subscription.created", True),
        ("hookhare.*.created", "hookhare.subscription.created", True),
        ("hookhare.#.created", "hookhare.subscription.created", True),
        ("hookhare.subscription.*", "hookhare.subscription.created", True),
        ("hookhare.subscription.created", "hookhare.subscription.created", True),
        ("hookhare.delivery.#", "hookhare.subscription.created", False),
        # Only the first word is special, and only as a whole word.
        ("#", "order.hookhare", True),
        ("*.hookhare", "order.hookhare", True),
        ("#", "hookhares.created", True),
        ("#", "Hookhare.created", True),
    ],
)
def test_hookhares_own_events_are_reached_only_by_their_first_word(
    pattern: str, event_type: str, expected: bool
) -> None:
    assert matches(pattern, event_type) is expected


def test_among_many_patterns_only_those_by_name_reach_hookhares_own_events() -> None:
    index: TopicIndex[str] = TopicIndex()
    for pattern in ("#", "*", "*.#", "hookhare.#", "hookhare.delivery.dead", "order.#"):
        index.add(pattern, pattern)
    assert index.match("hookhare.delivery.dead") == {"hookhare.#", "hookhare.delivery.dead"}
    assert index.match("order.paid") == {"#", "*.#", "order.#"}
