"""Follow the conversation with a task's agent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any, Final

from taskherd.backoff import Backoff
from taskherd.client import tasks
from taskherd.client.errors import ApiError, Unreachable
from taskherd.client.http import Client

INTERVAL: Final = 1.0
"""Seconds between two requests for new entries."""
MAX_FAILURES: Final = 8
"""Maximum number of consecutive failed requests; the wait after each grows up to 15 seconds."""
_BACKOFF: Final = Backoff(first=1.0, maximum=15.0, jitter=0.2)
_RETRIED: Final = frozenset({HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS})


def follow(
    client: Client, task: str, *, notice: Callable[[str], None], sleep: Callable[[float], None] = time.sleep
) -> Iterator[list[dict[str, Any]]]:
    """Yield the entries of a conversation so far, then new ones, until the task has no agent and gets none by itself.

    The task is resolved once: if it is deleted, its conversation ends, even if another task takes its name.

    Args:
        client: the server and token to use.
        task: an id, a name, or ``owner/name``.
        notice: called with the reason each time that a request fails and is repeated.
        sleep: waits for the given number of seconds.

    Raises:
        ClientError: if there is no such task, or the server fails ``MAX_FAILURES`` times in a row.
    """
    path = tasks.path_by_id(client, task)
    after, failures, is_over = -1, 0, False
    while True:
        try:
            query = {"after": str(after)} if after >= 0 else None
            entries = client.request("GET", *path, "logs", query=query).body["logs"]
            if entries:
                yield entries
                after = max(entry["id"] for entry in entries)  # an entry that came late is before its successors
            elif is_over:
                return
            else:
                is_over = tasks.has_ended(client, path)
            failures = 0
        except (ApiError, Unreachable) as error:
            if isinstance(error, ApiError) and error.status == HTTPStatus.NOT_FOUND:
                return  # it was deleted
            if failures >= MAX_FAILURES or (isinstance(error, ApiError) and error.status not in _RETRIED):
                raise
            notice(error.message)
            failures += 1
            sleep(_BACKOFF.delay(failures))
            continue
        if not is_over:
            sleep(INTERVAL)
