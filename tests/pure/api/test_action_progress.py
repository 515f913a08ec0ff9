"""How the progress of an action is told, and how that ends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import orjson
import pytest

from taskherd.api import changes
from taskherd.api.actions import handlers, progress
from taskherd.api.context import RequestContext
from taskherd.api.http.authenticator import Caller
from taskherd.api.http.concurrency import ConcurrencyLimit
from taskherd.api.http.errors import HTTPError
from taskherd.api.http.open_requests import AccessMonitor
from taskherd.api.http.sse import COMMENT
from taskherd.errors import Retry, Unavailable
from taskherd.store import task_actions
from tests.pure.api.test_action_documents import FINISHED, STARTED, action
from tests.pure.api.test_event_streams import following, lose_access

if TYPE_CHECKING:
    from taskherd.store.read_pool import Row

ALICE, ACTION = UUID(int=10), UUID(int=1)


class Reads:
    """An action of Alice, as it is read one time after the other, and a process that may have one stream of it."""

    def __init__(self) -> None:
        self.found: list[Row | Exception | None] = []
        self.streams = ConcurrencyLimit(10, 1, "Too many.")
        self.api = SimpleNamespace(
            reader="reader",
            action_streams=self.streams,
            stopping=asyncio.Event(),
            access=AccessMonitor(cast("Any", None), lambda: 0.0),
        )

    async def find(self, reader: object, user_id: UUID, action_id: UUID) -> Row | None:
        """Return the action as it is now."""
        assert (reader, user_id, action_id) == ("reader", ALICE, ACTION)
        found = self.found.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def request(self) -> RequestContext:
        """Return a request of Alice."""
        request = RequestContext(cast("Any", self.api), "GET", {"action": str(ACTION)}, {}, {})
        request.set_caller(Caller(ALICE, "alice", "token"))
        return request

    async def frames(self, *found: Row | Exception | None) -> list[bytes]:
        """Return the frames of a stream that begins with a new action, and reads these."""
        self.found = list(found)
        return [frame async for frame in progress._frames(self.request(), action(id=ACTION))]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Return an action that is read without a pause."""
    reads = Reads()
    monkeypatch.setattr(progress, "INTERVAL", 0.001)
    monkeypatch.setattr(task_actions, "find", reads.find)
    return reads


def progress_of(**fields: Any) -> bytes:
    """Return the frame of an action."""
    return changes.make_frame("action.progress", orjson.dumps(handlers.action_json(action(**fields)), default=str))


async def test_the_progress_of_an_action_is_told_until_it_is_finished(
    reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time that it has changed; a comment keeps the connection open while it has not."""
    monkeypatch.setattr(progress, "COMMENT_EVERY", 2)
    same = action(id=ACTION)
    started = action(id=ACTION, started_at=STARTED, succeeded=1)
    done = {"started_at": STARTED, "succeeded": 7, "finished_at": FINISHED}
    assert await reads.frames(same, same, same, started, started, action(id=ACTION, **done)) == [
        progress_of(id=ACTION),
        COMMENT,
        progress_of(id=ACTION, started_at=STARTED, succeeded=1),
        progress_of(id=ACTION, **done),
    ]
    assert not reads.streams.is_full(ALICE)


@pytest.mark.parametrize("found", [None, Unavailable("no database"), Retry("the plan is stale")])
async def test_a_stream_of_progress_is_to_be_resumed(reads: Reads, found: Exception | None) -> None:
    """After an outage, or if the action was deleted: the next request says which; and when the process stops."""
    assert await reads.frames(found) == [progress_of(id=ACTION), changes.RESUME]
    reads.api.stopping.set()
    assert await reads.frames() == [changes.RESUME]


async def test_a_user_has_so_many_streams_of_progress(reads: Reads) -> None:
    """The next one is refused; one that has lost its access is to be resumed."""
    reads.found = [action(id=ACTION), action(id=ACTION), *[action(id=ACTION, started_at=STARTED)] * 1_000]
    async with following(await progress.watch(reads.request())) as next_part:
        assert await next_part() == progress_of(id=ACTION)
        with pytest.raises(HTTPError) as raised:
            await progress.watch(reads.request())
        message = orjson.loads(raised.value.response.body)["message"]
        assert (raised.value.response.status, message) == (503, "Too many streams are open.")
        assert await next_part() == progress_of(id=ACTION, started_at=STARTED)
        lose_access(reads.api.access, None)
        assert await next_part() == changes.RESUME
    assert not reads.streams.is_full(ALICE)
