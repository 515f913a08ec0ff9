"""The meter of every contender: a line on stdout for each change of its counts."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY = 0.005
"""Seconds between two readings, each of which costs about 20 microseconds."""


def watch(read: Callable[[], tuple[int, ...]]) -> None:
    """Print time, finished reports, confirmed events and CPU seconds from a thread; ``read`` returns the counts.

    More counts may follow the first two, before the CPU seconds.
    Times are those of the monotonic clock, which all processes of a machine share.
    """
    threading.Thread(target=_watch, args=(read,), daemon=True, name="meter").start()


def _watch(read: Callable[[], tuple[int, ...]]) -> None:
    before: tuple[int, ...] = ()
    while True:
        counts = read()
        if counts != before:
            before = counts
            sys.stdout.write(json.dumps([time.monotonic(), *counts, time.process_time()]) + "\n")
            sys.stdout.flush()
        time.sleep(EVERY)
