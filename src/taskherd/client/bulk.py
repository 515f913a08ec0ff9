"""Operations on many tasks: create them with few requests, and do one thing to all that match a search."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final
from uuid import uuid4

from taskherd.backoff import Backoff
from taskherd.client import outages, tasks
from taskherd.client.errors import ApiError, ClientError, ExitCode, Unreachable
from taskherd.client.http import REQUEST_TIMEOUT, Client

MAX_TASKS: Final = 1_000
MAX_BYTES: Final = 3 * 1024 * 1024
"""Maximum number of tasks, and size of their JSON, in one request; the server accepts 4 MiB."""
BATCH_TIMEOUT: Final = 240.0
"""Seconds until a request with many tasks fails: the server answers each create within its own time limit."""
ACTIONS: Final = "task-actions"
_INTERVAL: Final = 0.5
_RETRY: Final = Backoff(first=0.5, maximum=10.0)
MAX_FAILURES: Final = 12
"""Maximum number of consecutive failed looks at an action, about 90 seconds; it goes on meanwhile."""
_MIN_TIMEOUT: Final = 1.0

Result = Mapping[str, Any]
"""The result of one create; its shape is ``CreateResult`` in ``docs/openapi.json``."""
Action = Mapping[str, Any]
"""An action and its progress; its shape is ``Action`` in ``docs/openapi.json``."""


def create_many(
    client: Client, entries: Sequence[Mapping[str, Any]], key: str, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Result]:
    """Create tasks, and yield the result of each in their order.

    What was not confirmed in time is repeated. What is beyond the caller's rate of creates is not: its result has the
    status 429, and the same call repeats it later, without creating anything twice.

    Args:
        client: the server and token to use.
        entries: the tasks, as ``BatchTask`` in ``docs/openapi.json``.
        key: the idempotency key of all together; that of an entry is its own, or this one with the entry's index.
        sleep: waits for the given number of seconds.
    """
    keyed = [{"idempotency_key": f"{key}/{index}", **entry} for index, entry in enumerate(entries)]
    for chunk in split_requests(keyed):
        results = _post(client, chunk)
        for _ in range(tasks.MAX_ATTEMPTS - 1):
            lost = [index for index, each in enumerate(results) if each["status"] == HTTPStatus.SERVICE_UNAVAILABLE]
            if not lost:
                break
            sleep(max(results[index].get("retry_after", 1) for index in lost))
            for index, result in zip(lost, _post(client, [chunk[index] for index in lost]), strict=True):
                results[index] = result
        yield from results


def _post(client: Client, entries: Sequence[Mapping[str, Any]]) -> list[Result]:
    body = {"tasks": entries}
    found: list[Result] = tasks.change(client, "POST", "task-batches", body=body, timeout=BATCH_TIMEOUT).body["results"]
    return found


def split_requests(entries: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Split entries into requests of up to ``MAX_TASKS`` entries and ``MAX_BYTES`` bytes."""
    start = size = 0
    for end, entry in enumerate(entries):
        length = len(json.dumps(entry))
        if end > start and (end - start >= MAX_TASKS or size + length > MAX_BYTES):
            yield entries[start:end]
            start, size = end, 0
        size += length
    if start < len(entries):
        yield entries[start:]


def preview_action(client: Client, action: str, query: str, text: str | None = None) -> Mapping[str, Any]:
    """Return what an action would be for, as ``ActionPreview`` in ``docs/openapi.json``; nothing is changed."""
    shown: Mapping[str, Any] = client.request(
        "POST", ACTIONS, body={**_body(action, query, text), "dry_run": True}
    ).body
    return shown


def start_action(
    client: Client,
    action: str,
    query: str,
    text: str | None = None,
    key: str | None = None,
    *,
    ids: Sequence[str] | None = None,
    notice: Callable[[str], None] = lambda _: None,
    left: Callable[[], float] = lambda: math.inf,
) -> Action:
    """Start an action for all tasks that match now; it goes on without this client.

    During an outage the request is repeated with the same key, so that it starts one action.

    Args:
        client: the server and token to use.
        action: ``pause``, ``resume``, ``delete``, ``send`` or ``interrupt``.
        query: search terms, as of the list of tasks.
        text: what a ``send`` sends.
        key: the idempotency key, with which a repeated call returns the same action, whatever ``ids`` are; a random one
            by default.
        ids: those of a preview, if the action is to be for no other tasks.
        notice: called with the reason each time that the request is repeated.
        left: returns the seconds for which the request may still be repeated.
    """
    body = {**_body(action, query, text), **({} if ids is None else {"ids": ids})}
    headers = {"Idempotency-Key": key or str(uuid4())}

    def post() -> Action:
        started: Action = client.request("POST", ACTIONS, body=body, headers=headers, timeout=_timeout(left)).body
        return started

    return outages.repeat(post, notice=notice, left=left)


def _body(action: str, query: str, text: str | None) -> dict[str, Any]:
    return {"action": action, "q": query, **({} if text is None else {"input": text})}


def _timeout(left: Callable[[], float]) -> float:
    """Return the timeout of a request, in seconds."""
    return max(_MIN_TIMEOUT, min(REQUEST_TIMEOUT, left()))


def follow_action(
    client: Client,
    started: Action,
    sleep: Callable[[float], None] = time.sleep,
    *,
    left: Callable[[], float] = lambda: math.inf,
) -> Iterator[Action]:
    """Yield the progress of an action until it is finished, or ``left`` returns that no seconds are left.

    Raise ``ClientError`` if the server cannot be asked ``MAX_FAILURES`` times in a row.
    """
    action, failures = started, 0
    yield action
    while action["finished_at"] is None and left() > 0:
        sleep(_RETRY.delay(failures - 1) if failures else _INTERVAL)
        try:
            action = client.request("GET", ACTIONS, action["id"], timeout=_timeout(left)).body
        except ClientError as error:
            is_temporary = isinstance(error, Unreachable) or (
                isinstance(error, ApiError) and error.code is ExitCode.ERROR
            )
            failures += 1
            if not is_temporary or failures > MAX_FAILURES:
                raise
            continue
        failures = 0
        yield action


def action_results(client: Client, action: Action, *, refused: bool = False) -> Iterator[Mapping[str, Any]]:
    """Yield the results of an action, or only those that are errors, page by page."""
    after: int | None = None
    while True:
        query = {"refused": "true" if refused else "false", **({} if after is None else {"after": str(after)})}
        page = client.request("GET", ACTIONS, action["id"], "results", query=query).body
        yield from page["results"]
        after = page["next"]
        if after is None:
            return


def cancel_action(client: Client, action: Action, *, left: Callable[[], float] = lambda: math.inf) -> Action:
    """Cancel an action: what was sent may take effect, and the tasks after it stay as they are.

    During an outage the request is repeated, as long as ``left`` returns that there are seconds left.
    """

    def post() -> Action:
        canceled: Action = client.request("POST", ACTIONS, action["id"], "cancel", timeout=_timeout(left)).body
        return canceled

    return outages.repeat(post, left=left)
