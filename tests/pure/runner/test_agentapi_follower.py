from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from taskherd.domain.reports import Health
from taskherd.runner.agents.agentapi import UNREACHABLE_AFTER, AgentApiFollower, _spoken_lines


async def test_an_unreachable_agentapi_is_reported_once_the_post_is_over() -> None:
    """While a post is under way nothing is reported; afterwards the next failure is, once, and so is the recovery."""
    reported: list[Health] = []
    journal = SimpleNamespace(port=1, ready_reported=True)
    context = SimpleNamespace(journal=journal, checkpoint={}, reporter=SimpleNamespace(health=reported.append))
    async with httpx.AsyncClient() as client:
        follower = AgentApiFollower(cast("Any", context), client)
        post: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        follower._posts.add(cast("Any", post))
        follower._failures = UNREACHABLE_AFTER
        follower._report_unreachable()
        assert reported == []
        follower._posts.clear()
        for failures in (UNREACHABLE_AFTER + 1, UNREACHABLE_AFTER + 2):
            follower._failures = failures
            follower._report_unreachable()
        assert reported == [Health.UNHEALTHY]
        follower._mark_reachable()
        follower._mark_reachable()
    assert reported == [Health.UNHEALTHY, Health.HEALTHY]


@pytest.mark.parametrize(
    ("lines", "spoken"),
    [
        (["● The command printed: hi", "", "✻ Cooked for 6s"], ["The command printed: hi", ""]),
        (["● Bash(sleep 6)", "✽ Propagating… (0s · ↓ 8 tokens)"], ["Bash(sleep 6)"]),
        (["* a bullet of a list", "· another"], ["* a bullet of a list", "· another"]),
    ],
)
def test_progress_is_not_speech(lines: list[str], spoken: list[str]) -> None:
    """Claude Code's progress lines and bullets are left out, a list's bullets are not."""
    assert _spoken_lines(lines) == spoken
