"""Agents that speak ACP while the wall clock of their runner is set: what lasts, lasts as long as it would have."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from taskherd.runner.agents.acp.follower import AcpFollower
from tests.harness.runner import eventually
from tests.runner.acp import acp_run

pytestmark = pytest.mark.timeout(120)
TWO_DAYS = timedelta(days=2)


async def test_a_clock_that_is_set_forward_ends_no_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn goes on, and so it does under the next runner."""
    looks = 0
    check = AcpFollower._check_deadlines

    async def count(follower: AcpFollower) -> None:
        nonlocal looks
        await check(follower)
        looks += 1

    async def until_looked_again() -> None:
        before = looks
        await eventually(lambda: looks > before)

    monkeypatch.setattr(AcpFollower, "_check_deadlines", count)
    async with acp_run(tmp_path) as run:
        await run.start("wait: go\nline: done")
        await run.until_state("working")
        for _ in range(2):
            run.ahead += TWO_DAYS
            await until_looked_again()
            await run.take_over()
            await until_looked_again()
        run.touch("go")
        await run.until_state("idle", "done")
        assert run.texts("notice") == []


async def test_a_clock_that_is_set_back_prolongs_no_turn(tmp_path: Path) -> None:
    """A turn ends at its limit, also under the next runner."""
    async with acp_run(tmp_path, turn_timeout=3.0) as run:
        await run.start("hang")
        await run.until_state("working")
        run.ahead = -TWO_DAYS
        await run.take_over()
        await run.until_state("idle", "The turn was interrupted.")
        assert any("exceeded its time limit" in text for text in run.texts("notice"))
