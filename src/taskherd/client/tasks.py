"""What people do with tasks, as requests: naming one, creating one, changing one, waiting for one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID, uuid4

from taskherd.client.errors import ApiError, ClientError, ExitCode
from taskherd.client.http import ApiResponse, Client

Task = Mapping[str, Any]
"""A task's document, as the API gives it."""

PAGE: Final = 100
TRIES: Final = 3
"""How often a write is sent that nobody answered for; its Idempotency-Key makes that safe."""
MAX_WAIT: Final = 60.0
"""Seconds that the server waits at most within one request."""
FAILURES: Final = ("failed", "error")
TIMED_OUT: Final = "x-taskherd-timed-out"
_AWAY: Final = frozenset({HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS})


def path_of(task: str) -> tuple[str, str, str]:
    """The path of what a person names: an id, a name of their own, or `owner/name`."""
    owner, slash, name = task.partition("/")
    named = (owner, name) if slash else ("me", task)
    if not all(named) or "/" in name or "." in named or ".." in named:
        raise ClientError(ExitCode.USAGE, f"{task!r} names no task", "expected an id, a name, or owner/name")
    return ("tasks", *named)


def show(client: Client, task: str) -> Task:
    """The task's document."""
    body: Task = client.request("GET", *path_of(task)).body
    return body


def list_tasks(client: Client, terms: Mapping[str, str], limit: int) -> Iterator[Task]:
    """The newest tasks, at most so many, page by page."""
    query = {"q": " ".join(f'{key}:"{value}"' for key, value in terms.items())}
    after: str | None = ""
    while limit > 0 and after is not None:
        page = client.request(
            "GET", "tasks", query={**query, "limit": str(min(PAGE, limit)), **({"after": after} if after else {})}
        ).body
        yield from page["tasks"]
        limit -= len(page["tasks"])
        after = page.get("next")


def change(client: Client, method: str, *path: str, body: Any = None, key: str | None = None) -> ApiResponse:
    """Send a write, again where the server could not answer for it; done once by its Idempotency-Key."""
    headers = {"Idempotency-Key": key or str(uuid4())}
    for last in (*[False] * (TRIES - 1), True):
        try:
            return client.request(method, *path, body=body, headers=headers)
        except ApiError as error:
            if last or error.status not in _AWAY:
                raise
            time.sleep(min(error.retry_after, MAX_WAIT))
    raise AssertionError  # the last try returns or raises


def template_version(client: Client, name: str | None) -> str:
    """The active version of the template of this name or id; without one, of the only one there is."""
    found = client.request("GET", "templates", query={"q": "has-ai-task:true"}).body
    names = sorted(each["name"] for each in found)
    wanted = [each for each in found if name is None or name.lower() in (each["name"].lower(), each["id"])]
    if len(wanted) == 1:
        return str(wanted[0]["active_version_id"])
    if name is None or wanted:
        advice = f"name one with --template: {', '.join(names)}" if names else "`taskherd directory apply` loads some"
        raise ClientError(ExitCode.USAGE, f"there are {len(wanted)} templates to choose from", advice)
    raise ClientError(ExitCode.NOT_FOUND, f"there is no template {name!r}", f"there are: {', '.join(names) or 'none'}")


def preset(client: Client, version: str, name: str) -> str:
    """The id of a version's preset of this name or id."""
    found = client.request("GET", "templateversions", version, "presets").body
    for each in found:
        if name.lower() in (each["Name"].lower(), each["ID"]):
            return str(each["ID"])
    names = ", ".join(each["Name"] for each in found) or "none"
    raise ClientError(ExitCode.NOT_FOUND, f"there is no preset {name!r}", f"there are: {names}")


def wait(
    client: Client, task: str, until: Iterable[str], within: float, now: Callable[[], float] = time.monotonic
) -> tuple[Task, bool]:
    """The task when its status or state is one of `until`, or has failed; and whether that came within so many seconds.

    An id or name is looked up once: a task that is deleted meanwhile is not found any more, also where another one
    takes its name.
    """
    first = show(client, task)
    path = ("tasks", str(UUID(first["owner_id"])), str(UUID(first["id"])))
    wanted = ",".join(dict.fromkeys((*until, *FAILURES)))
    deadline = now() + within
    while True:
        left = max(0.0, min(MAX_WAIT, deadline - now()))
        query = {"wait": f"{left * 1000:.0f}ms", "until": wanted}
        told = client.request("GET", *path, query=query, timeout=left + 30)
        if TIMED_OUT not in told.headers:
            return told.body, True
        if now() >= deadline:
            return told.body, False


def status_and_state(task: Task) -> tuple[str, str]:
    """A task's status, and what its agent says it is in, "" while that is nothing."""
    return task["status"], (task["current_state"] or {}).get("state", "")
