"""Which patterns an event's type matches, by AMQP's topic rules.

Words are joined by dots; in a pattern, `*` stands for exactly one word and `#` for any number of them, none included.

One rule beyond AMQP's, as MQTT has it for `$SYS`: Hookhare's own events, whose types begin with the word `hookhare`,
are reached only by patterns that begin with that word itself. Who asks for `#` asks for the events of their domain.
"""

from typing import Final, Generic, TypeVar

from schemas.fields import OPERATIONAL_WORD

Key = TypeVar("Key")

_ONE: Final = "*"
_ANY: Final = "#"


def matches(pattern: str, event_type: str) -> bool:
    """Whether one pattern matches one type."""
    index: TopicIndex[None] = TopicIndex()
    index.add(pattern, None)
    return bool(index.match(event_type))


class TopicIndex(Generic[Key]):
    """Patterns with the keys that they stand for; a key may have several patterns, and a pattern several keys.

    Patterns without wildcards, which are most, stand in a dict and cost one look-up. The others stand in a trie of
    words, and a match follows all places that the words so far can lead to, at once: that costs at most words times
    places, whatever the patterns are, where backtracking over several `#` would grow exponentially.
    """

    def __init__(self) -> None:
        self._exact: dict[str, set[Key]] = {}
        self._root: _Place[Key] = _Place(repeats=False)

    def add(self, pattern: str, key: Key) -> None:
        """Have `key` found by `pattern`. Adding it again changes nothing."""
        words = pattern.split(".")
        if not _has_wildcard(words):
            self._exact.setdefault(pattern, set()).add(key)
            return
        place = self._root
        for word in words:
            place = place.next.setdefault(word, _Place(repeats=word == _ANY))
        place.keys.add(key)

    def remove(self, pattern: str, key: Key) -> None:
        """Take back an `add`, and the memory it took. What is not there is passed over."""
        words = pattern.split(".")
        if _has_wildcard(words):
            self._remove_from_trie(words, key)
        elif keys := self._exact.get(pattern):
            keys.discard(key)
            if not keys:
                del self._exact[pattern]

    def match(self, event_type: str) -> set[Key]:
        """The keys of all patterns that match, each once. The set is the caller's own."""
        found = set(self._exact.get(event_type, ()))
        if not self._root.next:
            return found
        words = event_type.split(".")
        if words[0] == OPERATIONAL_WORD:
            first = self._root.next.get(words.pop(0))
            places = _with_no_word({first}) if first is not None else set()
        else:
            places = _with_no_word({self._root})
        for word in words:
            places = _with_no_word(_with_word(places, word))
        for place in places:
            found |= place.keys
        return found

    def _remove_from_trie(self, words: list[str], key: Key) -> None:
        path = [self._root]
        for word in words:
            place = path[-1].next.get(word)
            if place is None:
                return
            path.append(place)
        path[-1].keys.discard(key)
        for before, word, place in zip(path[-2::-1], reversed(words), reversed(path), strict=False):
            if place.keys or place.next:
                return
            del before.next[word]


class _Place(Generic[Key]):
    """A place in the trie: the keys of the patterns that end here, and where their words lead on.

    `repeats`: it was reached by `#`, and any further word leads back to it.
    """

    __slots__ = ("keys", "next", "repeats")

    def __init__(self, *, repeats: bool) -> None:
        self.keys: set[Key] = set()
        self.next: dict[str, _Place[Key]] = {}
        self.repeats = repeats


def _with_word(places: set[_Place[Key]], word: str) -> set[_Place[Key]]:
    """Where one word leads to from these places."""
    reached = {place for place in places if place.repeats}
    for place in places:
        for step in (word, _ONE):
            if step in place.next:
                reached.add(place.next[step])
    return reached


def _with_no_word(places: set[_Place[Key]]) -> set[_Place[Key]]:
    """These places, and those that a `#` leads to without taking a word."""
    reached = set(places)
    ahead = list(places)
    while ahead:
        place = ahead.pop().next.get(_ANY)
        if place is not None and place not in reached:
            reached.add(place)
            ahead.append(place)
    return reached


def _has_wildcard(words: list[str]) -> bool:
    return _ONE in words or _ANY in words
