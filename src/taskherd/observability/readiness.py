"""Whether this process is ready for work, and if not, why: conditions the app sets, and checks that are asked."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING

from taskherd.errors import TaskherdError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    Check = Callable[[], "Awaitable[str | None] | str | None"]
    """Returns None when all is well, else the reason why not."""

CHECK_TIMEOUT = 2.0


class Readiness:
    """Named conditions, each either well (None) or with the reason why not; at first none is known to be well."""

    def __init__(self, *conditions: str, timeout: float = CHECK_TIMEOUT) -> None:
        self._reasons: dict[str, str | None] = dict.fromkeys(conditions, "not known yet")
        self._checks: dict[str, Check] = {}
        self._running: dict[str, asyncio.Task[str | None]] = {}
        self._timeout = timeout

    def set(self, name: str) -> None:
        """Say that the condition `name` is well."""
        self._reasons[name] = None

    def clear(self, name: str, reason: str) -> None:
        """Say that the condition `name` is not well, and why."""
        self._reasons[name] = reason

    def check(self, name: str, check: Check) -> None:
        """Ask `check` whenever somebody asks whether we are ready; it may take `timeout` seconds."""
        self._checks[name] = check

    async def reasons(self) -> dict[str, str | None]:
        """Return for every condition and check None or the reason why it is not well."""
        names = list(self._checks)
        answers = await asyncio.gather(*(self._run_check(name) for name in names))
        return {**self._reasons, **dict(zip(names, answers, strict=True))}

    async def _run_check(self, name: str) -> str | None:
        """Ask one check, which is never cancelled (a cancelled query may leak its connection) nor run twice at once."""
        running = self._running.get(name)
        if running is None:
            running = asyncio.create_task(_answer(self._checks[name]), name=f"readiness of {name}")
            self._running[name] = running
            running.add_done_callback(lambda _: self._running.pop(name, None))
        done, _ = await asyncio.wait({running}, timeout=self._timeout)
        if not done:
            return f"no answer within {self._timeout:g} s"
        return "cancelled" if running.cancelled() else running.result()


def _answer(check: Check) -> Coroutine[None, None, str | None]:
    async def answer() -> str | None:
        try:
            result = check()
            return await result if inspect.isawaitable(result) else result
        except TaskherdError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer; its text may hold a URL
            return f"failed with {type(error).__name__}"

    return answer()
