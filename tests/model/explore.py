"""Exploring: every state within a number of interferences, or a few long walks by chance.

Exhaustive: first all that may happen without an interference, then with one, and so on, so that a trace is short. In
each such layer the steps of progress must not go round in a circle, and where they end everything must have ended:
then every run comes to its end, whatever the order of its steps, once nothing interferes any more.
"""

import random
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import Final

from tests.model import invariants
from tests.model.rules import Rules
from tests.model.state import NAMES, State, key
from tests.model.steps import Kind, Step, steps

FREE_KINDS: Final = ("progress", "restart")
INTERFERENCES: Final[tuple[Kind, ...]] = ("fault", "operator", "replay")
_LONGEST_WALK: Final = 1000


class Broken(Exception):
    """An invariant is broken; the message is the trace that leads there."""


class Exploration:
    """All states that can be reached from `start` with at most `interferences` of the `kinds`; raises Broken."""

    def __init__(
        self, start: State, rules: Rules, *, interferences: int, kinds: Collection[Kind] = INTERFERENCES
    ) -> None:
        self._rules = rules
        self._kinds = kinds
        self._number_of: dict[tuple[object, ...], int] = {}
        self._states: list[State] = []
        self._came: list[tuple[int, str]] = []  # from which state, by which step
        self.steps = 0
        layer = [(start, -1, "everything is published, nothing admitted")]
        for left in range(interferences, -1, -1):
            layer = self._explore(layer, interfere=left > 0)

    def __len__(self) -> int:
        return len(self._states)

    def _explore(self, layer: Sequence[tuple[State, int, str]], *, interfere: bool) -> list[tuple[State, int, str]]:
        """All that follows from these states without an interference; what follows with one more."""
        first = len(self._states)
        for state, came_from, label in layer:
            self._enter(state, came_from, label)
        progress: list[list[int]] = []
        beyond: dict[tuple[object, ...], tuple[State, int, str]] = {}
        number = first
        while number < len(self._states):
            state = self._states[number]
            progress.append([])
            ends = True
            for step in steps(state, self._rules, interfering=interfere):
                self.steps += 1
                if step.kind in FREE_KINDS:
                    self._check(number, step)
                    reached = self._enter(step.state, number, step.label)
                    if step.kind == "progress":
                        ends = False
                        if reached >= first:  # else it was reached with less interference, and ends
                            progress[-1].append(reached - first)
                elif interfere and step.kind in self._kinds:
                    self._check(number, step)
                    identity = key(step.state)
                    if identity not in self._number_of:
                        beyond.setdefault(identity, (step.state, number, step.label))
            if ends and (wrong := invariants.of_end(state)):
                raise Broken(self._trace(number, wrong))
            number += 1
        self._check_for_circles(progress, first)
        return list(beyond.values())

    def _enter(self, state: State, came_from: int, label: str) -> int:
        identity = key(state)
        number = self._number_of.get(identity)
        if number is None:
            number = self._number_of[identity] = len(self._states)
            self._states.append(state)
            self._came.append((came_from, label))
            if wrong := invariants.of_state(state, faultless="fault" not in self._kinds):
                raise Broken(self._trace(number, wrong))
        return number

    def _check(self, number: int, step: Step) -> None:
        if wrong := invariants.of_step(self._states[number], step):
            raise Broken(self._trace(number, wrong, step.label))

    def _check_for_circles(self, successors: Sequence[Sequence[int]], first: int) -> None:
        """Take away what leads nowhere but to ends, again and again; what is left goes round."""
        predecessors: list[list[int]] = [[] for _ in successors]
        left = [len(after) for after in successors]
        for number, after in enumerate(successors):
            for one in after:
                predecessors[one].append(number)
        ends = [number for number, after in enumerate(left) if after == 0]
        for end in ends:
            for number in predecessors[end]:
                left[number] -= 1
                if left[number] == 0:
                    ends.append(number)
        if len(ends) == len(successors):
            return
        circle, seen = [next(number for number, after in enumerate(left) if after)], set[int]()
        while circle[-1] not in seen:
            seen.add(circle[-1])
            circle.append(next(after for after in successors[circle[-1]] if left[after]))
        circle = circle[circle.index(circle[-1]) :]
        rounds = [self._label_between(first + one, first + other) for one, other in pairwise(circle)]
        wrong = "\n  ".join(["from there the dispatchers go round in a circle for ever:", *rounds])
        raise Broken(self._trace(first + circle[0], wrong))

    def _label_between(self, number: int, other: int) -> str:
        there = key(self._states[other])
        return next(
            step.label
            for step in steps(self._states[number], self._rules, interfering=False)
            if key(step.state) == there
        )

    def _trace(self, number: int, wrong: str, *last: str) -> str:
        labels = [*reversed(last)]
        end = self._states[number]
        while number >= 0:
            number, label = self._came[number]
            labels.append(label)
        return trace(labels[::-1], end, wrong)


def walk(start: State, rules: Rules, *, seed: int, interferences: int) -> int:
    """One long run by chance, and then on without interference to its end; returns how many steps it had."""
    chance = random.Random(seed)
    state, labels = start, [f"a walk with seed {seed}"]

    def take(step: Step) -> State:
        labels.append(step.label)
        wrong = invariants.of_step(state, step) or invariants.of_state(step.state, faultless=False)
        if wrong:
            raise Broken(trace(labels, step.state, wrong))
        return step.state

    left = interferences
    while len(labels) < _LONGEST_WALK:
        free: list[Step] = []
        costly: list[Step] = []
        for step in steps(state, rules, interfering=left > 0):
            (free if step.kind in FREE_KINDS else costly).append(step)
        if left and costly and (not free or chance.random() < 0.15):
            state = take(chance.choice(costly))
            left -= 1
        elif progress := [step for step in free if left or step.kind == "progress"]:
            state = take(chance.choice(progress))
        else:
            break
    wrong = invariants.of_end(state) if len(labels) < _LONGEST_WALK else "it does not come to an end"
    if wrong:
        raise Broken(trace(labels, state, wrong))
    return len(labels)


def trace(labels: Sequence[str], state: State, wrong: str) -> str:
    """For a person: the steps, the state that they lead to, and what is wrong with it."""
    numbered = [f"{number:3}. {label}" for number, label in enumerate(labels)]
    return "\n".join([*numbered, "Now:", *_shown(state), f"Wrong: {wrong}"])


def _shown(state: State) -> Iterator[str]:
    for number, one in enumerate(state.deliveries):
        yield f"  delivery {number}: {one}"
    for number, dispatcher in enumerate(state.dispatchers):
        yield f"  {NAMES[number]}: {dispatcher}"
    yield f"  {state.subscription}, hints {state.hints}"


def find(start: State, rules: Rules, *, up_to: int, kinds: Collection[Kind] = INTERFERENCES) -> str:
    """The trace of what breaks under these rules, with as few interferences as it takes; empty when nothing does."""
    for interferences in range(up_to + 1):
        try:
            Exploration(start, rules, interferences=interferences, kinds=kinds)
        except Broken as broken:
            return str(broken)
    return ""
