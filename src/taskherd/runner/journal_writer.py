"""Write the journal of one task to disk, one version after the other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from taskherd.runner import journal as journals

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from taskherd.runner.journal import Journal

log = structlog.get_logger(__name__)


class JournalWriter:
    """Writes a journal to the file ``path``, as it is when the writing begins; without an accepted build, nothing."""

    def __init__(self, journal: Journal, path: Path) -> None:
        self._journal = journal
        self._path = path
        self._writing = asyncio.Lock()
        self._saves: set[asyncio.Task[None]] = set()

    @property
    def is_idle(self) -> bool:
        """True if nothing is being written."""
        return not self._saves

    async def save(self) -> None:
        """Write the journal to disk. Raise ``OSError`` if that fails.

        It is written to its end, before anything else writes it, also if the caller is cancelled meanwhile.
        """
        if not self._journal.build_number:
            return  # nothing was accepted, so the task is not on this runner
        saving = self._start(self._write())
        saving.add_done_callback(_retrieve)
        await asyncio.shield(saving)

    async def save_if_possible(self) -> None:
        """Write the journal to disk; if that fails, the next change writes it. Repeating its requests is harmless."""
        try:
            await self.save()
        except OSError as error:
            log.warning("cannot write journal", task_id=str(self._journal.task_id), reason=str(error))

    def save_in_background(self) -> None:
        """Write the journal to disk soon, if possible."""
        self._start(self.save_if_possible())

    async def wait_saved(self) -> None:
        """Wait until nothing is being written: the next supervisor of the task writes the same file."""
        while self._saves:  # not with asyncio.gather, which lets nothing run if all have ended
            await asyncio.wait(self._saves)

    async def _write(self) -> None:
        async with self._writing:
            content = self._journal.model_dump_json().encode()
            await asyncio.to_thread(journals.write, self._path, content)

    def _start(self, save: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(save)
        self._saves.add(task)
        task.add_done_callback(self._saves.discard)
        return task


def _retrieve(task: asyncio.Task[None]) -> None:
    """Retrieve the error of a task, or asyncio warns of it if its caller was cancelled."""
    if not task.cancelled():
        task.exception()
