from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from taskherd.domain.reports import Health
from taskherd.runner.agents.agentapi import (
    UNREACHABLE_AFTER,
    AgentApiFollower,
    _spoken_lines,
)
from taskherd.runner.agents.agentapi_client import REQUEST_TIMEOUT
from taskherd.runner.agents.context import DeliveryUnknown


async def test_an_unreachable_agentapi_is_reported_once_the_post_is_over() -> None:
    """While a post is under way nothing is reported; afterwards the next failure is, once, and so is the recovery."""
    reported: list[Health] = []
    journal = SimpleNamespace(port=1, ready_reported=True)
    run, reporter = SimpleNamespace(post_prompt=False), SimpleNamespace(health=reported.append)
    context = SimpleNamespace(journal=journal, checkpoint={}, run=run, prompt="", reporter=reporter)
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


def follower_of(respond: Callable[[httpx.Request], httpx.Response]) -> AgentApiFollower:
    """Return a follower of an agent whose AgentAPI responds like this."""
    journal, run = SimpleNamespace(port=1, ready_reported=True), SimpleNamespace(post_prompt=False)
    reporter = SimpleNamespace(build_number=1, log=lambda *_, **__: None)
    context = SimpleNamespace(journal=journal, checkpoint={}, run=run, prompt="", reporter=reporter)
    client = httpx.AsyncClient(base_url="http://127.0.0.1:1", transport=httpx.MockTransport(respond))
    return AgentApiFollower(cast("Any", context), client)


async def test_an_attempt_is_recorded_when_the_agent_is_stable() -> None:
    """Not earlier: a runner that ends while the input waits leaves it to the next one, instead of failing it."""
    events: list[str] = []

    async def record_attempt() -> None:
        events.append("recorded")

    def respond(request: httpx.Request) -> httpx.Response:
        events.append(f"posted {json.loads(request.content)['content']}")
        return httpx.Response(200, stream=httpx.ByteStream(b""))

    follower = follower_of(respond)
    delivery = asyncio.create_task(follower.deliver(" hello ", record_attempt))
    for _ in range(20):  # more steps than a delivery takes
        await asyncio.sleep(0)
    assert events == []
    follower._set_status("stable")
    await delivery
    assert events == ["recorded", "posted hello"]


@pytest.mark.parametrize("error", [httpx.ConnectTimeout, httpx.ConnectError])
async def test_a_post_that_did_not_connect_is_repeated(error: type[httpx.RequestError]) -> None:
    """Nothing was typed into the agent's terminal then, so the input is neither lost nor of unknown outcome."""
    timeouts: list[dict[str, float]] = []

    def respond(request: httpx.Request) -> httpx.Response:
        timeouts.append(request.extensions["timeout"])
        if len(timeouts) == 1:
            raise error("no connection", request=request)
        return httpx.Response(200, stream=httpx.ByteStream(b""))

    follower = follower_of(respond)
    follower._set_status("stable")
    await follower.deliver("hello", recorded)
    assert [(each["connect"], each["read"]) for each in timeouts] == [(REQUEST_TIMEOUT, 86_400)] * 2, (
        "a turn takes a day at most"
    )


@pytest.mark.parametrize("error", [httpx.ReadTimeout, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError])
async def test_a_post_that_broke_off_is_of_unknown_outcome(error: type[httpx.RequestError]) -> None:
    """The agent may have received it, so it is not posted again."""
    posts = 0

    def respond(request: httpx.Request) -> httpx.Response:
        nonlocal posts
        posts += 1
        raise error("broken", request=request)

    follower = follower_of(respond)
    follower._set_status("stable")
    with pytest.raises(DeliveryUnknown, match=error.__name__):
        await follower.deliver("hello", recorded)
    assert posts == 1


async def recorded() -> None:
    """Record nothing: these tests have no journal."""


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
