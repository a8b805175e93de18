"""Made once for all who ask at once; nobody's cancellation is another's."""

import asyncio

import pytest

from infra.single_flight import SingleFlight


class Work:
    """Makes numbers, each when it is told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = asyncio.Event()

    async def make(self) -> int:
        self.begun += 1
        number = self.begun
        await self.go.wait()
        return number


async def _begun(*tasks: asyncio.Task[tuple[int, bool]]) -> None:
    for _ in tasks:
        await asyncio.sleep(0)


async def test_those_who_ask_meanwhile_get_the_same_and_the_next_one_a_new_one() -> None:
    flights, work = SingleFlight[str, int](), Work()
    asking = [asyncio.create_task(flights.get("a", work.make)) for _ in range(5)]
    other = asyncio.create_task(flights.get("b", work.make))
    await _begun(*asking, other)
    work.go.set()
    assert await asyncio.gather(*asking) == [(1, True), *[(1, False)] * 4]
    assert await other == (2, True)
    assert await flights.get("a", work.make) == (3, True)


async def test_the_first_ones_cancellation_leaves_it_to_the_others() -> None:
    flights, work = SingleFlight[str, int](), Work()
    first = asyncio.create_task(flights.get("a", work.make))
    second = asyncio.create_task(flights.get("a", work.make))
    await _begun(first, second)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    work.go.set()
    assert await second == (1, False)
    assert work.begun == 1


async def test_an_error_is_everybodys_and_is_not_kept() -> None:
    flights, work = SingleFlight[str, int](), Work()

    async def fail() -> int:
        raise ValueError("no")

    for ended in await asyncio.gather(*(flights.get("a", fail) for _ in range(3)), return_exceptions=True):
        assert isinstance(ended, ValueError)
    work.go.set()
    assert await flights.get("a", work.make) == (1, True)


async def test_closing_ends_what_is_under_way() -> None:
    flights, work = SingleFlight[str, int](), Work()
    asking = asyncio.create_task(flights.get("a", work.make))
    await _begun(asking)
    await flights.close()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_who_asks_between_the_end_and_its_noticing_gets_a_new_one() -> None:
    """It was a loop without a wait for who asks until there is enough of what is made."""
    flights: SingleFlight[str, int] = SingleFlight()
    asking: list[asyncio.Task[tuple[int, bool]]] = []

    async def second() -> int:
        return 2

    async def first() -> int:
        asking.append(asyncio.create_task(flights.get("a", second)))  # runs before any callback of this one's end
        return 1

    assert await flights.get("a", first) == (1, True)
    assert await asking[0] == (2, True)
    assert await flights.get("a", second) == (2, True)
