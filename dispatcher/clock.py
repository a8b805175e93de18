"""The dispatcher's clocks: wall time for what people and receivers read, boot time for ages.

`CLOCK_BOOTTIME` goes on while a machine is suspended, so that a dispatcher that slept knows that it did.
"""

import time
from datetime import UTC, datetime

_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # macOS has no CLOCK_BOOTTIME


def boot_s() -> float:
    """Seconds since boot, suspension included."""
    return time.clock_gettime(_BOOT)


def wall() -> datetime:
    """Now, in UTC."""
    return datetime.now(UTC)
