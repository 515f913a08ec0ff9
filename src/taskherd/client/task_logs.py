"""Follow the conversation with a task's agent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final

from taskherd.client import outages, tasks
from taskherd.client.conversation import Entry, FollowedConversation
from taskherd.client.errors import ApiError, ClientError
from taskherd.client.events import StreamEvent
from taskherd.client.http import Client
from taskherd.client.stream_reader import StreamReader

INTERVAL: Final = 1.0
"""Seconds without an event after which it is checked which entries are final, and whether the agent has ended."""
_RESTING: Final = frozenset({"idle", "complete", "failed"})
"""States of an agent that writes nothing."""


def newest(client: Client, task: str) -> tuple[dict[str, Any], bool]:
    """Return the newest entries of a conversation, as the API does, and whether there are older ones."""
    path = (*tasks.path_of(task), "logs")
    body: dict[str, Any] = client.request("GET", *path).body
    first = min((entry["id"] for entry in body["logs"]), default=0)
    try:
        older = first and client.request("GET", *path, query={"before": str(first), "limit": "1"}).body["logs"]
    except ApiError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        older = []  # the task was deleted meanwhile
    return body, bool(older)


def follow(client: Client, task: str, *, notice: Callable[[str], None]) -> Iterator[list[Entry]]:
    """Yield the entries of a conversation so far, then others, until the task has no agent and gets none by itself.

    An entry is yielded once it is final: another one comes after it, its tool call has ended, the agent is idle or has
    ended, or, the first time, it has not changed for ``conversation.QUIET`` seconds, such as a tool call that goes on.
    One that changes after that is yielded again, once it is final.

    The task is resolved once: if it is deleted, its conversation ends, even if another task takes its name.

    Args:
        client: the server and token to use.
        task: an id, a name, or ``owner/name``.
        notice: called with the reason each time that the connection is lost, or a request fails and is repeated.

    Raises:
        ClientError: if there is no such task, or the server fails ``outages.MAX_FAILURES`` times in a row.
    """
    follower = _Follower(client, tasks.path_by_id(client, task), notice)
    try:
        yield from follower.entries()
    except ClientError as error:
        is_deleted = isinstance(error, ApiError) and error.status == HTTPStatus.NOT_FOUND
        if isinstance(error, ApiError) and not is_deleted:  # the server answers, but perhaps has no room for a stream
            with suppress(ClientError):
                follower.read()
        yield from follower.rest()
        if not is_deleted:
            raise


class _Follower:
    """One follower of one conversation."""

    def __init__(self, client: Client, path: tuple[str, ...], notice: Callable[[str], None]) -> None:
        self._client = client
        self._path = path
        self._notice = notice
        self._conversation = FollowedConversation()
        self._document: tasks.Task = {}

    def entries(self) -> Iterator[list[Entry]]:
        """Yield entries that are final until there will be none."""
        path = (*self._path, "watch")
        with StreamReader(self._client, *path, query={"logs": "1"}, notice=self._notice) as stream:
            while True:
                event = stream.next(INTERVAL)
                has_ended = False
                if event is not None:
                    self._apply(event)
                elif tasks.is_over(self._document):
                    has_ended = self._repeated(lambda: tasks.has_ended(self._client, self._path))
                if has_ended:
                    self._repeated(self.read)
                is_quiet = event is None and self._is_resting
                found = self._conversation.take(time.monotonic(), everything=is_quiet)
                if found:
                    yield found
                if has_ended or (event is not None and event.type == "task.deleted"):
                    yield from self.rest()
                    return

    def read(self) -> None:
        """Read the entries that are new or may have changed: the stream may leave some out, or bring them later."""
        after = self._conversation.after
        query = {"after": str(after)} if after >= 0 else None
        body = self._client.request("GET", *self._path, "logs", query=query).body
        self._conversation.receive(body["logs"], time.monotonic(), may_be_older=True)

    def rest(self) -> Iterator[list[Entry]]:
        """Yield what is left, in its last version."""
        found = self._conversation.take(time.monotonic(), everything=True)
        if found:
            yield found

    @property
    def _is_resting(self) -> bool:
        return bool(self._document) and (
            tasks.is_over(self._document) or tasks.status_and_state(self._document)[1] in _RESTING
        )

    def _apply(self, event: StreamEvent) -> None:
        match event.type:
            case "task.logs":
                try:
                    if event.data["truncated"]:
                        self._repeated(self.read)
                finally:  # what the stream has is newer
                    self._conversation.receive(event.data["logs"], time.monotonic())
            case "task.snapshot":
                self._document = event.data
            case "task.updated":
                self._document = event.data["data"]["task"]
            case _:
                pass

    def _repeated(self, attempt: Callable[[], Any]) -> Any:
        return outages.repeat(attempt, notice=self._notice)
