"""CPU seconds of a process with all that it has started, ended children included."""

import psutil


def cpu_s(pid: int) -> float:
    """User and system time so far."""
    root = psutil.Process(pid)
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:  # it ended just now: its parent has its time
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total
