"""Whether this process is ready for work, and if not, why: conditions that the app sets, and checks run on request."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING

from taskherd.errors import TaskherdError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    Check = Callable[[], "Awaitable[str | None] | str | None"]
    """A check that returns None if it succeeds, else the reason for the failure."""

CHECK_TIMEOUT = 2.0
"""Seconds that a check may take."""


class Readiness:
    """Named conditions and checks, each either OK (None) or with a reason; conditions start as unknown."""

    def __init__(self, *conditions: str, timeout: float = CHECK_TIMEOUT) -> None:
        self._reasons: dict[str, str | None] = dict.fromkeys(conditions, "not known yet")
        self._checks: dict[str, Check] = {}
        self._running: dict[str, asyncio.Task[str | None]] = {}
        self._notes: set[str] = set()
        self._timeout = timeout

    def set_ok(self, name: str) -> None:
        """Mark the condition ``name`` as OK."""
        self._reasons[name] = None

    def set_failed(self, name: str, reason: str) -> None:
        """Mark the condition ``name`` as not OK for ``reason``."""
        self._reasons[name] = reason

    def add_check(self, name: str, check: Check) -> None:
        """Run ``add_check`` on every readiness request, with a timeout."""
        self._checks[name] = check

    def add_note(self, name: str, check: Check) -> None:
        """Run ``check`` on every readiness request too, and show its result without counting it."""
        self.add_check(name, check)
        self._notes.add(name)

    def counts(self, name: str) -> bool:
        """Return whether the process is unready while this condition or check has a reason."""
        return name not in self._notes

    async def reasons(self) -> dict[str, str | None]:
        """Return for each condition and check None if it is OK, else the reason."""
        names = list(self._checks)
        results = await asyncio.gather(*(self._run_check(name) for name in names))
        return {**self._reasons, **dict(zip(names, results, strict=True))}

    async def _run_check(self, name: str) -> str | None:
        """Run one check. It is never cancelled (a cancelled query may leak its connection) nor run twice at once."""
        running = self._running.get(name)
        if running is None:
            running = asyncio.create_task(_run(self._checks[name]), name=f"readiness of {name}")
            self._running[name] = running
            running.add_done_callback(lambda _: self._running.pop(name, None))
        done, _ = await asyncio.wait({running}, timeout=self._timeout)
        if not done:
            return f"no answer within {self._timeout:g} s"
        return "cancelled" if running.cancelled() else running.result()


def _run(check: Check) -> Coroutine[None, None, str | None]:
    async def run() -> str | None:
        try:
            result = check()
            return await result if inspect.isawaitable(result) else result
        except TaskherdError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - every error makes the check fail; its text may contain a URL
            return f"failed with {type(error).__name__}"

    return run()
