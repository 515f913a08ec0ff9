"""What AgentAPI's events lead to in a task's log and state, without an agent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from taskherd import sse
from taskherd.runner.agents.agentapi import AgentApiFollower
from taskherd.runner.workspaces.processes import ExitRecord
from tests.pure.runner.contexts import Spending, make_context, reports_of


class Followed:
    """A follower of AgentAPI, and what it has reported."""

    def __init__(self, folder: Path, client: httpx.AsyncClient) -> None:
        self._client = client
        self._folder = folder
        self._context = make_context(folder, agent="agentapi", idle_after=0.001)
        self.follower = AgentApiFollower(self._context, client)

    def go_on(self) -> None:
        """Follow with another runner, from the checkpoint."""
        self._context = make_context(self._folder, outbox=self._context.outbox, agent="agentapi", idle_after=0.001)
        self.follower = AgentApiFollower(self._context, self._client)

    def count_spending(self) -> Spending:
        """Return the budget that another follower has from now on, which notes what is spent."""
        budget = Spending()
        self._context = replace(self._context, log_budget=budget)
        self.follower = AgentApiFollower(self._context, self._client)
        return budget

    async def handle(self, kind: str, data: object) -> None:
        """Handle an event."""
        await self.follower._handle_event(sse.Event(kind, data if isinstance(data, str) else json.dumps(data), ""))

    async def say(self, number: int, text: str, role: str = "agent", **more: object) -> None:
        """Handle a message."""
        await self.handle("message_update", {"id": number, "message": text, "role": role, **more})

    def post(self, text: str) -> None:
        """Note that the runner is about to post a text: only then is a message with it the user's."""
        self.follower._posted_texts.add(text, self.follower._highest_id)

    def take(self, kind: str) -> list[dict[str, Any]]:
        """Return the reports of this type so far."""
        return reports_of(self._context.outbox, kind)

    @property
    def entries(self) -> list[tuple[int, str, str]]:
        """Id, type and content of the reported entries, in order."""
        return [
            (entry["id"], entry["type"], entry["content"])
            for report in self.take("task.log")
            for entry in report["entries"]
        ]

    @property
    def states(self) -> list[tuple[str, str]]:
        """The reported states and their messages."""
        return [(report["state"], report.get("message", "")) for report in self.take("app.status")]

    @property
    def bad(self) -> float:
        """Number of events that were counted as bad."""
        return float(self._context.metrics.runner_agent_events_bad._value.get())


@pytest.fixture
async def followed(tmp_path: Path) -> AsyncIterator[Followed]:
    """Yield a follower that makes no requests."""
    async with httpx.AsyncClient() as client:
        yield Followed(tmp_path, client)


async def test_messages_are_reported_when_they_have_changed(followed: Followed) -> None:
    """Each once, with the padding of the screen removed; one that is sent again unchanged is left out."""
    followed.post("Fix it please")
    await followed.say(0, "Fix it   \nplease  \n\n", "user")
    await followed.say(1, "Thinking")
    await followed.say(1, "Thinking about it", time="2026-03-01T11:00:00Z")
    assert followed.entries == []
    followed.follower._flush()
    assert followed.entries == [(0, "input", "Fix it\nplease"), (1, "output", "Thinking about it")]
    times = [entry["time"] for report in followed.take("task.log") for entry in report["entries"]]
    assert times == ["2026-03-01T12:00:00.000000Z", "2026-03-01T11:00:00.000000Z"]
    await followed.say(1, "Thinking about it")
    followed.follower._flush()
    assert len(followed.entries) == 2
    await followed.say(1, "Done")
    followed.follower._flush()
    assert followed.entries[2:] == [(1, "output", "Done")]


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("message_update", "{"),
        ("message_update", "[]"),
        ("message_update", {"message": "a", "role": "user"}),
        ("message_update", {"id": "x", "message": "a", "role": "user"}),
        ("message_update", {"id": -1, "message": "a", "role": "user"}),
        ("message_update", {"id": 2**40, "message": "a", "role": "user"}),
        ("message_update", "[" * 100_000),
        ("status_change", {}),
        ("agent_error", {"level": "warning"}),
    ],
)
async def test_what_cannot_be_read_is_counted(followed: Followed, kind: str, data: object) -> None:
    """It stops nothing; an id beyond those of messages would replace an entry of another source."""
    await followed.handle(kind, data)
    assert followed.bad == 1
    await followed.say(2**40 - 1, "The last id")
    followed.follower._flush()
    assert followed.entries == [(2**40 - 1, "output", "The last id")]
    assert followed.bad == 1


async def test_other_events_are_a_later_agentapis(followed: Followed) -> None:
    """They are ignored and no fault."""
    await followed.handle("screen_update", {"screen": "x"})
    await followed.handle("status_change", {"status": "dancing"})
    followed.follower._flush()
    assert (followed.entries, followed.states, followed.bad) == ([], [], 0)
    assert followed.follower.is_at_work


async def test_events_that_show_nothing_count_in_full(followed: Followed) -> None:
    """Also known ones: what was told before, and a message that would replace the user's."""
    budget = followed.count_spending()
    followed.post("Hi")
    for kind, fields in (
        ("message_update", {"id": 0, "message": "Hi", "role": "user"}),
        ("agent_error", {"message": "no credit", "time": 1}),
        ("status_change", {"status": "running"}),
    ):
        await followed.handle(kind, fields)
    shown = [*budget.spent]
    silent = [
        ("message_update", {"id": 0, "message": "Ho", "role": "user"}),
        ("agent_error", {"message": "no credit", "time": 1}),
        ("status_change", {"status": "running"}),
        ("status_change", {"status": "dancing"}),
        ("screen_update", {"screen": "x"}),
        ("message_update", "["),
    ]
    for kind, given in silent:
        await followed.handle(kind, given)
    assert shown == [(2, len("AgentAPI error: no credit")), (1, 0)]
    assert budget.spent[2:] == [(0, size) for size in (42, 35, 21, 21, 15, 1)]


async def test_an_error_is_reported_once(followed: Followed) -> None:
    """Each new stream begins with all earlier ones; also the next runner knows them."""
    await followed.handle("agent_error", {"message": "no credit", "time": 1})
    await followed.handle("agent_error", {"message": "no credit", "time": 1})
    await followed.handle("agent_error", {"message": "slow", "level": "warning", "time": 1})
    first, second = (2**40, "output", "AgentAPI error: no credit"), (2**40 + 1, "output", "AgentAPI warning: slow")
    assert followed.entries == [first, second]
    assert followed.states == [("working", "AgentAPI error: no credit"), ("working", "AgentAPI warning: slow")]
    followed.go_on()
    await followed.handle("agent_error", {"message": "slow", "level": "warning", "time": 1})
    assert len(followed.entries) == 2
    await followed.handle("agent_error", {"message": "slow", "level": "warning", "time": 2})
    assert followed.entries[2:] == [(2**40 + 2, "output", "AgentAPI warning: slow")]


async def test_the_latest_100_errors_are_remembered(followed: Followed) -> None:
    """The oldest is told again if it comes again."""
    for number in range(101):
        await followed.handle("agent_error", {"message": f"fault {number}", "time": 1})
    for number, count in ((1, 101), (100, 101), (0, 102)):
        await followed.handle("agent_error", {"message": f"fault {number}", "time": 1})
        assert len(followed.entries) == count


async def test_an_agent_works_while_its_screen_changes(followed: Followed) -> None:
    """That is told once, and that it waits only after the screen has been stable for a time, which is noted."""
    at_work, since = [], []
    for status in ("running", "running", "stable", "stable", "running"):
        await followed.handle("status_change", {"status": status})
        at_work.append(followed.follower.is_at_work)
        since.append(followed.follower._stable_since)
    assert at_work == [True, True, False, False, True]
    assert (since[:2], since[2] > 0, since[2] == since[3], since[4]) == ([0, 0], True, True, 0)
    assert followed.states == [("working", "The agent is working.")]
    (report,) = followed.take("app.status")
    assert report["guessed_from"] == "its screen, which AgentAPI watches"


async def test_a_posted_message_is_echoed_by_a_later_one_of_the_user(followed: Followed) -> None:
    """An earlier message with the same text, another text, and what the agent says, are no echo."""
    followed.post("go on")
    await followed.say(3, "go on", "user")
    followed.post("go on")
    echoed = asyncio.Event()
    followed.follower._posted = ("go on", followed.follower._highest_id, echoed)
    await followed.say(3, "go on", "user")
    await followed.say(4, "go on")
    followed.post("go away")
    await followed.say(5, "go away", "user")
    assert not echoed.is_set()
    await followed.say(6, "go on", "user")
    assert echoed.is_set()


async def test_many_changes_are_reported_before_the_next_flush(followed: Followed) -> None:
    """At 2,000 messages, or 4 MiB of changes, also of the same message; then the count begins anew."""
    for number in range(1_999):
        await followed.say(number, f"m{number}")
    assert followed.entries == []
    await followed.say(1_999, "the last")
    assert len(followed.entries) == 2_000
    assert max(len(report["entries"]) for report in followed.take("task.log")) == 4
    for number in range(65):
        await followed.say(1, f"{number:02}" + "x" * (64 * 1024 - 2))
    assert [content[:2] for _, _, content in followed.entries[2_000:]] == ["63"]


async def test_what_changed_last_is_reported_with_the_exit(followed: Followed) -> None:
    """The last words are those of the agent's last message, its state the one before."""
    await followed.handle("status_change", {"status": "running"})
    await followed.say(0, "All is done.\n✻ Cooked for 6s")
    followed.post("thanks")
    await followed.say(1, "thanks", "user")
    await followed.follower.conclude(ExitRecord("exited", code=3))
    assert [entry[:2] for entry in followed.entries[:2]] == [(0, "output"), (1, "input")]
    (ended,) = followed.take("agent.exit")
    assert (ended["why"], ended["status"], ended["words"]) == ("exited", 3, "All is done.")
