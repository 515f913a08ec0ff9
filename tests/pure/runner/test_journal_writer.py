"""Waiting until a journal is written."""

from __future__ import annotations

import asyncio
from pathlib import Path

from taskherd.runner.journal import Journal
from taskherd.runner.journal_writer import JournalWriter
from tests.pure.runner.test_journal import TASK


async def test_who_waits_for_a_write_that_has_just_ended_lets_others_run(tmp_path: Path) -> None:
    """The write has ended in this very step of the loop, and has yet to say so."""
    writer = JournalWriter(Journal(task_id=TASK, task_name="a"), tmp_path / "journal.json")
    writer.save_in_background()
    await asyncio.sleep(0)
    assert not writer.is_idle
    await writer.wait_saved()
    assert writer.is_idle
