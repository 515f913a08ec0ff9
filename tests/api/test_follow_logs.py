"""``taskherd task logs --follow`` of entries that an agent replaces while it writes them."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterable
from typing import Any

import pytest

from taskherd.api.tasks import log_follow, queries
from taskherd.client import conversation
from tests.api.test_command_line import Shell, quiet
from tests.harness.api import ApiHarness
from tests.harness.runner import eventually
from tests.harness.tcp_proxy import TcpProxy
from tests.harness.worker import make_report

__all__ = ["quiet"]


def logged(task: uuid.UUID, seq: int, *entries: tuple[int, str], **fields: Any) -> dict[str, Any]:
    """Return a report of entries, each an id and a content."""
    common = {"type": "output", "time": "2026-03-01T12:00:00Z", **fields}
    return make_report(
        "task.log", task, seq=seq, entries=[{"id": number, "content": content, **common} for number, content in entries]
    )


def spy(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the contents of the entries that followers receive, as they do."""
    received: list[str] = []
    receive = conversation.FollowedConversation.receive

    def noted(
        self: conversation.FollowedConversation, entries: Iterable[conversation.Entry], now: float, **words: Any
    ) -> None:
        found = list(entries)
        receive(self, found, now, **words)
        received.extend(entry["content"] for entry in found)

    monkeypatch.setattr(conversation.FollowedConversation, "receive", noted)
    return received


async def until_logged(harness: ApiHarness, content: str) -> None:
    """Wait until the log has an entry with this content."""
    await harness.worker.until_row("SELECT count(*) FROM task_logs WHERE content = $1", content, is_=1)


@pytest.mark.parametrize("as_json", [True, False])
async def test_a_followed_entry_is_printed_in_its_last_version(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch, *, as_json: bool
) -> None:
    """An entry that grows is printed once, when another one comes or the agent ends, and never a beginning of it."""
    monkeypatch.setattr(conversation, "QUIET", 600.0)
    received = spy(monkeypatch)
    task = uuid.UUID((await api_harness.active(name="grows"))["id"])
    words = ("logs", "-f", "grows", *(("-o", "json") if as_json else ()))
    follower = asyncio.create_task(Shell(api_harness).run(*words))
    await api_harness.worker.report(logged(task, 1, (0, "Hel")))
    await until_logged(api_harness, "Hel")
    await eventually(lambda: "Hel" in received)
    await api_harness.worker.report(logged(task, 2, (0, "Hello world")))
    await api_harness.worker.report(logged(task, 3, (1, "And")))
    await until_logged(api_harness, "And")
    await api_harness.worker.report(logged(task, 4, (1, "And goodbye")))
    await api_harness.worker.report(make_report("agent.exit", task, why="exited", status=0))
    result = await asyncio.wait_for(follower, 60)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    if as_json:
        assert [(each["id"], each["content"]) for each in map(json.loads, lines)] == [
            (0, "Hello world"), (1, "And goodbye"),
        ]  # fmt: skip
    else:
        assert [line[11:] for line in lines] == ["Hello world", "And goodbye"]


async def test_a_followed_conversation_outlives_an_outage(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All entries so far are printed first; what came while the connection was lost follows, and nothing twice."""
    received = spy(monkeypatch)
    task = uuid.UUID((await api_harness.active(name="lasts"))["id"])
    await api_harness.worker.report(logged(task, 1, *((number, f"line {number}") for number in range(30))))
    await until_logged(api_harness, "line 29")
    proxy = await TcpProxy.before(api_harness.base)
    try:
        url = f"http://127.0.0.1:{proxy.port}"
        follower = asyncio.create_task(Shell(api_harness).run("logs", "-f", "lasts", TASKHERD_URL=url))
        await eventually(lambda: "line 0" in received)
        proxy.freeze()
        proxy.cut()
        await api_harness.worker.report(logged(task, 2, (29, "line 29, longer"), (30, "line 30")))
        await until_logged(api_harness, "line 30")
        proxy.thaw()
        await eventually(lambda: "line 30" in received)
        await api_harness.worker.report(make_report("agent.exit", task, why="exited", status=0))
        result = await asyncio.wait_for(follower, 60)
    finally:
        await proxy.stop()
    assert result.exit_code == 0
    assert "; reconnecting" in result.stderr
    lines = [line[11:] for line in result.stdout.splitlines() if line[11:] != "line 29"]  # if the outage took long
    assert lines == [*(f"line {number}" for number in range(29)), "line 29, longer", "line 30"]


async def test_what_a_stream_leaves_out_after_an_outage_is_printed(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the rest of an entry that was printed before because it was quiet."""
    monkeypatch.setattr(conversation, "QUIET", 0.0)
    monkeypatch.setattr(log_follow, "MAX_ENTRIES", 2)
    received = spy(monkeypatch)
    task = uuid.UUID((await api_harness.active(name="leaves-out"))["id"])
    await api_harness.worker.report(logged(task, 1, (0, "Hel")))
    await until_logged(api_harness, "Hel")
    proxy = await TcpProxy.before(api_harness.base)
    try:
        url = f"http://127.0.0.1:{proxy.port}"
        follower = asyncio.create_task(Shell(api_harness).run("logs", "-f", "leaves-out", TASKHERD_URL=url))
        await eventually(lambda: "Hel" in received)
        proxy.freeze()
        proxy.cut()
        await api_harness.worker.report(
            logged(task, 2, (0, "Hello"), *((number, f"{number}") for number in range(1, 5)))
        )
        await until_logged(api_harness, "4")
        proxy.thaw()
        await eventually(lambda: "4" in received)
        await api_harness.worker.report(make_report("agent.exit", task, why="exited", status=0))
        result = await asyncio.wait_for(follower, 60)
    finally:
        await proxy.stop()
    assert [line[11:] for line in result.stdout.splitlines()] == ["Hel", "Hello", "1", "2", "3", "4"]


async def test_older_entries_that_are_left_out_are_said(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer has the newest entries only; if there are more, stderr says so, in both formats."""
    task = uuid.UUID((await api_harness.active(name="long"))["id"])
    shell = Shell(api_harness)
    await api_harness.worker.report(logged(task, 1, *((number, f"line {number}") for number in range(5))))
    await until_logged(api_harness, "line 4")
    whole = await shell.run("logs", "long")
    assert (len(whole.stdout.splitlines()), whole.stderr) == (5, "")
    monkeypatch.setattr(queries, "MAX_LOG_ENTRIES", 3)
    for words in (("logs", "long"), ("logs", "long", "-o", "json")):
        result = await shell.run(*words)
        assert result.exit_code == 0
        assert result.stderr == "Only the newest 3 entries are printed; older ones are left out.\n"
    await api_harness.worker.database.execute("DELETE FROM task_logs WHERE log_id < 2")
    assert (await shell.run("logs", "long")).stderr == ""
