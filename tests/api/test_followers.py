"""One user follows changes with a limited number of streams, long polls and sockets, so that others can follow too."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from websockets.exceptions import InvalidStatus

from taskherd.api.actions import progress
from taskherd.api.change_feed import ChangeFeed
from taskherd.api.http.concurrency import ConcurrencyLimit
from taskherd.api.tasks import log_follow
from tests.api.conftest import StartApi
from tests.api.test_clients import AGENT, WORKSPACE, frames, socket
from tests.api.test_open_requests import running_task, unfinished_action
from tests.api.test_sse import until_subscribers
from tests.harness.sse import sse_client

REFUSED = {
    "message": "You have too many streams, long polls and WebSockets open.",
    "detail": "One user may have 3 in one API process. Close some, or follow all tasks with one stream.",
}


async def test_one_user_cannot_cut_others_off_from_changes(start_api: StartApi) -> None:
    """Who has as many streams, long polls and sockets as one user may gets a 429 for the next; others follow on."""
    async with start_api(api_followers_most=3) as api_harness, AsyncExitStack() as stack:
        task = await running_task(api_harness)
        polling = asyncio.create_task(api_harness.alice.get(f"/tasks/me/{task}?wait=40s&until=failed", timeout=None))
        opened = await stack.enter_async_context(socket(api_harness, f"/workspaces/{WORKSPACE}/watch-ws"))
        held = await stack.enter_async_context(sse_client(api_harness.alice, "/tasks/watch"))
        await held.ready()
        await until_subscribers(api_harness, 3)
        for path in (
            "/tasks/watch",
            f"/tasks/me/{task}/watch",
            f"/tasks/me/{task}/watch?logs=9",
            f"/workspaces/{WORKSPACE}/watch",
            f"/tasks/me/{task}?wait=1s&until=failed",
        ):
            async with asyncio.timeout(30), api_harness.alice.stream("GET", path) as refused:
                assert (refused.status_code, refused.headers.get("Retry-After")) == (429, "2"), path
                await refused.aread()
                assert refused.json() == REFUSED
        for path in (f"/workspaces/{WORKSPACE}/watch-ws", f"/workspaceagents/{AGENT}/logs?follow"):
            with pytest.raises(InvalidStatus) as denied:
                await socket(api_harness, path)
            assert denied.value.response.status_code == 429
        other = await stack.enter_async_context(sse_client(api_harness.bob, "/tasks/watch"))
        await other.ready()
        await opened.close()
        await until_subscribers(api_harness, 3)
        again = await stack.enter_async_context(sse_client(api_harness.alice, "/tasks/watch"))
        await again.ready()
        assert (held.ended, other.ended, polling.done()) == (False, False, False)
        polling.cancel()


async def test_followers_that_come_at_once_have_no_more_room(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had room when it was requested, and has none when it begins, ends so that its client comes back."""
    monkeypatch.setattr(ChangeFeed, "check_room", lambda _feed, _user_id: None)
    async with start_api(api_followers_most=1) as api_harness, AsyncExitStack() as stack:
        task = await running_task(api_harness)
        held = await stack.enter_async_context(sse_client(api_harness.alice, "/tasks/watch"))
        await held.ready()
        late = await stack.enter_async_context(sse_client(api_harness.alice, f"/tasks/me/{task}/watch"))
        await late.until(lambda: late.ended)
        assert late.types() == ["resume"]
        workspace = await api_harness.alice.get(f"/workspaces/{WORKSPACE}/watch")
        assert (workspace.status_code, workspace.text) == (200, "")
        opened = await stack.enter_async_context(socket(api_harness, f"/workspaces/{WORKSPACE}/watch-ws"))
        assert (await frames(opened), opened.close_code) == ([], 1013)
        assert not held.ended


@pytest.mark.parametrize("kind", ["logs", "task and logs", "action"])
async def test_streams_of_logs_and_actions_that_come_at_once_have_no_more_room(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """One that loses its room before it begins ends so that its client comes back, and is refused then."""
    for module in (log_follow, progress):
        monkeypatch.setattr(module, "MAX_STREAMS_OF_USER", 1)
    async with start_api() as api_harness, AsyncExitStack() as stack:
        task = await running_task(api_harness)
        action = f"/task-actions/{await unfinished_action(api_harness)}/watch"
        logs = f"/tasks/me/{task}/logs/watch"
        path = {"logs": logs, "task and logs": f"/tasks/me/{task}/watch", "action": action}[kind]
        query = {"logs": "9"} if kind == "task and logs" else {}
        held = await stack.enter_async_context(sse_client(api_harness.alice, action if kind == "action" else logs))
        await held.until(lambda: held.events)
        is_full, looks = ConcurrencyLimit.is_full, iter([False])
        monkeypatch.setattr(
            ConcurrencyLimit, "is_full", lambda limit, user_id: next(looks, True) and is_full(limit, user_id)
        )
        late = await stack.enter_async_context(sse_client(api_harness.alice, path, **query))
        await late.until(lambda: late.ended)
        assert late.types()[-1:] == ["resume"]
        assert (await api_harness.alice.get(path, params=query)).status_code == 503
        assert not held.ended
