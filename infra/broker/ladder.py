"""The ladder: the fixed delays that a retry can wait in the broker.

One TTL per queue, because a queue expires messages only at its head: mixed delays in one queue would wait for each
other. 1000·2^(k/4) ms for k = 0…66 is 1 s to 25.8 h in steps of 19 %, so that any delay up to 24 h needs one hop and is
at most 19 % late, never early.
"""

from bisect import bisect_left

RUNGS_MS: tuple[int, ...] = tuple(round(1000 * 2 ** (k / 4)) for k in range(67))


def rung_ms(delay_s: float) -> int:
    """The first rung, in milliseconds, that is not shorter than `delay_s`; the last for anything beyond it."""
    index = bisect_left(RUNGS_MS, delay_s * 1000)
    return RUNGS_MS[min(index, len(RUNGS_MS) - 1)]
