"""A sampling profiler: counts the Python stack at each millisecond of the process's CPU time.

Time in C is attributed to the Python frame that called it or, under uvloop, to the next one that it calls.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

INTERVAL = 0.001
_MAX_DEPTH = 80


@contextmanager
def sampling(path: str) -> Iterator[None]:
    """Count stacks during the block and write them to ``path``; do nothing if it is empty."""
    if not path:
        yield
        return
    stacks: Counter[tuple[str, ...]] = Counter()

    def sample(_number: int, frame: FrameType | None) -> None:
        stack: list[str] = []
        while frame is not None and len(stack) < _MAX_DEPTH:
            code = frame.f_code
            stack.append(f"{code.co_filename}:{code.co_qualname}")
            frame = frame.f_back
        stacks[tuple(stack)] += 1

    signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        Path(path).write_text(json.dumps([[list(stack), count] for stack, count in stacks.items()]))
