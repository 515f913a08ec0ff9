"""A worker's context of which only some parts are there, for tests of a single loop."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from taskherd.worker.context import WorkerContext


def partial_context(**parts: Any) -> WorkerContext:
    """Return a context with these parts; all others are None."""
    every: dict[str, Any] = {field.name: parts.get(field.name) for field in fields(WorkerContext)}
    return WorkerContext(**every)
