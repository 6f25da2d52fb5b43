"""The CPUs that there are for this process."""

from __future__ import annotations

import os


def usable_cpus() -> list[int]:
    """Numbers of the CPUs that this process may run on; all where the system does not tell."""
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return list(range(os.cpu_count() or 1))
