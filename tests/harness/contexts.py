"""A worker's context of which only some parts are there, and waits that take no time, for tests of a single loop."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from taskherd.worker.context import WorkerContext


def partial_context(**parts: Any) -> WorkerContext:
    """Return a context with these parts; all others are None."""
    every: dict[str, Any] = {field.name: parts.get(field.name) for field in fields(WorkerContext)}
    return WorkerContext(**every)


class Waits:
    """The waits after failures, which take no time here: each is noted as the number of failures in a row."""

    def __init__(self) -> None:
        self.after: list[int] = []

    def delay(self, failures: int) -> float:
        """Note a wait, and return its length in seconds."""
        self.after.append(failures)
        return 0
