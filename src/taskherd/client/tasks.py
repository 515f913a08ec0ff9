"""Operations on tasks: list, show, change and wait for them, and look up templates and presets by name."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final
from uuid import UUID, uuid4

from taskherd.client import outages
from taskherd.client.errors import ApiError, ClientError, ExitCode, Unreachable
from taskherd.client.http import REQUEST_TIMEOUT, ApiResponse, Client

Task = Mapping[str, Any]
"""A task document, as the API returns it; its shape is ``TaskDocument`` in ``docs/openapi.json``."""

PAGE: Final = 100
"""Maximum number of tasks in one list request."""
MAX_DELETED: Final = 100
"""Maximum number of deleted tasks in a list."""
MAX_DELETED_PAGES: Final = 20
"""Maximum number of requests for that list: a page may have few or none while others have deleted very many tasks."""
MAX_ATTEMPTS: Final = 3
"""Attempts to send a write whose answer is lost, or that the server is unavailable or too busy for.

Its ``Idempotency-Key`` makes repeats safe.
"""
MAX_RETRY_AFTER: Final = 60.0
"""Maximum wait before a write is repeated, in seconds; the server asks for up to a minute beyond a rate limit."""
MAX_WAIT: Final = 25.0
"""Maximum duration of one long poll, in seconds: proxies end a request that is silent for longer, many after 60."""
FAILURES: Final = ("failed", "error")
"""The agent's state, and the status, of a task that failed."""
STARTING: Final = ("pending", "initializing")
"""The statuses of a task whose workspace or agent starts."""
NOT_STARTING: Final = ("active", "paused", "unknown", "error")
"""The other statuses."""
ENDED: Final = "ended"
"""What a long poll waits for that is to end when the agent has ended or is lost."""
LOST: Final = "agent has lost connection"
"""The reason in the agent health of a task whose agent is lost."""
SETTLE: Final = 2.0
"""Seconds within which the last state of an agent follows the report of its end."""
TIMED_OUT: Final = "x-taskherd-timed-out"
"""Response header of a long poll that ended without the requested status or state."""


def path_of(task: str) -> tuple[str, str, str]:
    """Return the path of a task given as an id, as the name of one of the caller's tasks, or as ``owner/name``.

    Raise ``ClientError`` with ``ExitCode.USAGE`` if ``task`` is none of these.
    """
    owner, slash, name = task.partition("/")
    segments = (owner, name) if slash else ("me", task)
    if not all(segments) or "/" in name or "." in segments or ".." in segments:
        raise ClientError(ExitCode.USAGE, f"invalid task reference {task!r}", "expected an id, a name, or owner/name")
    return ("tasks", *segments)


def path_by_id(client: Client, task: str) -> tuple[str, str, str]:
    """Return the path of a task by its ids, which stays its own when it is deleted and another task takes its name."""
    document = show(client, task)
    return ("tasks", str(UUID(document["owner_id"])), str(UUID(document["id"])))


def show(client: Client, task: str) -> Task:
    """Return the task document."""
    body: Task = client.request("GET", *path_of(task)).body
    return body


def list_tasks(
    client: Client, terms: Mapping[str, str], limit: int, *, query: str | None = None, sort: str | None = None
) -> Iterator[Task]:
    """Yield up to ``limit`` task documents, newest first, requested page by page.

    Args:
        client: the server and token to use.
        terms: the search terms, all of which must match: ``owner``, ``status``, ``state``, ``label`` and others.
        limit: the maximum number of tasks.
        query: the search terms as one text instead.
        sort: ``created``, or ``changed`` for the last changed first; by default what the server chooses.
    """
    q = query if query is not None else " ".join(f'{key}:"{value}"' for key, value in terms.items())
    parameters = {"q": q, **({"sort": sort} if sort else {})}
    after: str | None = ""
    while limit > 0 and after is not None:
        page = client.request(
            "GET", "tasks", query={**parameters, "limit": str(min(PAGE, limit)), **({"after": after} if after else {})}
        ).body
        yield from page["tasks"]
        limit -= len(page["tasks"])
        after = page.get("next")


def list_deleted(client: Client, terms: Mapping[str, str], limit: int) -> tuple[list[Task], bool]:
    """Return up to ``limit`` deleted tasks, at most ``MAX_DELETED``, last deleted first, and whether more may follow.

    Args:
        client: the server and token to use.
        terms: the search terms, all of which must match: ``owner``, and ``name``, the beginning of it.
        limit: the maximum number of tasks.
    """
    q = " ".join(f'{key}:"{value}"' for key, value in terms.items())
    found: list[Task] = []
    after: str | None = ""
    for _ in range(MAX_DELETED_PAGES):
        query = {"q": q, "limit": str(limit - len(found)), **({"after": after} if after else {})}
        page = client.request("GET", "deleted-tasks", query=query).body
        found += page["tasks"]
        after = page.get("next")
        if after is None or len(found) >= limit:
            break
    return found, after is not None


def totals(client: Client, query: str) -> Mapping[str, Any]:
    """Return how many tasks match the search terms; the shape is ``TaskTotals`` in ``docs/openapi.json``."""
    found: Mapping[str, Any] = client.request("GET", "task-totals", query={"q": query}).body
    return found


def overview(client: Client, query: str) -> Mapping[str, Any]:
    """Return what needs a person, runs and is complete; the shape is ``TaskOverview`` in ``docs/openapi.json``."""
    found: Mapping[str, Any] = client.request("GET", "task-overview", query={"q": query}).body
    return found


def change(
    client: Client,
    method: str,
    *path: str,
    body: Any = None,
    key: str | None = None,
    timeout: float = REQUEST_TIMEOUT,
) -> ApiResponse:
    """Send a request that changes something; repeat it if its answer is lost, or the server unavailable or too busy.

    It is not repeated if no attempt can have reached the server, as when nothing listens there.

    Args:
        client: the server and token to use.
        method: the HTTP method.
        path: the path's segments below ``/api/v2``.
        body: a value to send as JSON.
        key: the ``Idempotency-Key``, with which a repeated request takes effect once; a random one by default.
        timeout: seconds without a byte from the server after which the request fails; attempts whose answer was lost
            take no longer together.
    """
    headers, may_have_arrived, left = {"Idempotency-Key": key or str(uuid4())}, False, timeout
    for attempt in range(1, MAX_ATTEMPTS + 1):
        began = time.monotonic()
        try:
            return client.request(method, *path, body=body, headers=headers, timeout=left)
        except (ApiError, Unreachable) as error:
            may_have_arrived = error.may_have_arrived = may_have_arrived or error.may_have_arrived
            if isinstance(error, Unreachable):
                left -= time.monotonic() - began
            if attempt == MAX_ATTEMPTS or left <= 0 or not may_have_arrived or _is_permanent(error):
                raise
            time.sleep(_delay(error, attempt))
    raise AssertionError  # the last attempt returns or raises


def _is_permanent(error: ApiError | Unreachable) -> bool:
    """Return whether a write fails again if it is repeated."""
    return isinstance(error, ApiError) and error.status not in outages.RETRIED


def _delay(error: ApiError | Unreachable, attempt: int) -> float:
    """Return the seconds to wait after a failed attempt to send a write."""
    return min(error.retry_after, MAX_RETRY_AFTER) if isinstance(error, ApiError) else outages.BACKOFF.delay(attempt)


def template_version(client: Client, name: str | None) -> str:
    """Return the id of the active version of a template, given by name or id; by default of the only template.

    Raise ``ClientError`` if there is no such template, or if ``name`` is None and there is not exactly one.
    """
    templates = client.request("GET", "templates", query={"q": "has-ai-task:true"}).body
    names = sorted(each["name"] for each in templates)
    matching = [each for each in templates if name is None or name.lower() in (each["name"].lower(), each["id"])]
    if len(matching) == 1:
        return str(matching[0]["active_version_id"])
    if not names:
        raise ClientError(
            ExitCode.USAGE if name is None else ExitCode.NOT_FOUND,
            "there are no templates",
            "load some with `taskherd directory apply FILE.yaml`",
        )
    choices = f"choose one of: {', '.join(names)}"
    if matching:
        raise ClientError(ExitCode.USAGE, f"{len(matching)} templates match", f"{choices}, with --template")
    raise ClientError(ExitCode.NOT_FOUND, f"there is no template {name!r}", choices)


def preset(client: Client, version: str, name: str) -> str:
    """Return the id of a template version's preset, given by name or id.

    Raise ``ClientError`` if the version has no such preset.
    """
    presets = client.request("GET", "templateversions", version, "presets").body
    for each in presets:
        if name.lower() in (each["Name"].lower(), each["ID"]):
            return str(each["ID"])
    names = ", ".join(each["Name"] for each in presets)
    advice = f"choose one of: {names}" if names else "the template has no presets"
    raise ClientError(ExitCode.NOT_FOUND, f"there is no preset {name!r}", advice)


def wait(
    client: Client,
    task: str,
    until: Iterable[str],
    within: float,
    *,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> tuple[Task, bool]:
    """Wait until a task's status or its agent's state is one of ``until``, or no longer will be.

    That is, until the task has failed or its agent has ended or is lost; but not if the worker starts a lost agent
    again by itself (``run.on_loss``).

    The task is resolved once: if it is deleted meanwhile, the wait raises ``ClientError`` with
    ``ExitCode.NOT_FOUND``, even if another task takes its name. It outlives outages of the API.

    Args:
        client: the server and token to use.
        task: an id, a name, or ``owner/name``.
        until: statuses (``active``, ``paused``, …) and states (``idle``, ``complete``, …), in lower case.
        within: the maximum wait, in seconds.
        now: the clock, in seconds.
        sleep: waits for the given number of seconds before a request is repeated.

    Returns:
        The latest task document, and whether the wait ended before the time was up.
    """
    path = path_by_id(client, task)
    awaited = set(until)
    deadline = now() + within

    def left() -> float:
        return max(0.0, deadline - now())

    def poll(values: Iterable[str], most: float = MAX_WAIT) -> tuple[Task, bool]:
        return outages.repeat(lambda: _long_poll(client, path, values, min(most, left())), sleep=sleep, left=left)

    while True:
        document, is_over = poll((*awaited, *FAILURES, ENDED))
        if is_over and not awaited.intersection(status_and_state(document)):
            if document.get("agent_exit") is not None:
                document, is_awaited = poll(awaited, SETTLE)
                if is_awaited:
                    return document, True
            is_over = not outages.repeat(lambda: _starts_again(client, path), sleep=sleep, left=left)
            if not is_over:  # what it has already would end the poll at once
                poll((*awaited, *(NOT_STARTING if document["status"] in STARTING else STARTING)))
        if is_over or now() >= deadline:
            return document, is_over


def has_ended(client: Client, path: tuple[str, ...]) -> bool:
    """Return whether the task at ``path`` has no running agent, and none will be started without being asked for."""
    return is_over(client.request("GET", *path).body) and not _starts_again(client, path)


def is_over(task: Task) -> bool:
    """Return whether a task has no running agent, though one may be started."""
    lost = (task.get("workspace_agent_health") or {}).get("reason") == LOST
    return bool(task.get("status") in {"paused", "error"} or task.get("agent_exit") is not None or lost)


def _long_poll(client: Client, path: tuple[str, ...], until: Iterable[str], wait: float) -> tuple[Task, bool]:
    """Return the document, and whether it had one of these values within ``wait`` seconds."""
    query = {"wait": f"{wait * 1000:.0f}ms", "until": ",".join(sorted(set(until)))}
    response = client.request("GET", *path, query=query, timeout=wait + REQUEST_TIMEOUT)
    return response.body, TIMED_OUT not in response.headers


def _starts_again(client: Client, path: tuple[str, ...]) -> bool:
    """Return whether the agent will be started again without anybody asking for it, or a start is in progress.

    A task whose agent ended, or was lost, before it was ready has the status of one that starts.
    """
    body = client.request("GET", *path, "explain").body
    if body["restart_at"] is not None:
        return True
    health = body["health"]["value"] or {}
    is_gone = body["agent_exit"]["value"] is not None or health.get("reason") == LOST
    return body["status"]["value"] in STARTING and not is_gone


def explain(client: Client, task: str) -> Mapping[str, Any]:
    """Return the explanation of a task; its shape is ``TaskExplanation`` in ``docs/openapi.json``."""
    body: Mapping[str, Any] = client.request("GET", *path_of(task), "explain").body
    return body


def timeline(client: Client, task: str, limit: int) -> list[Mapping[str, Any]]:
    """Return the newest ``limit`` (1 to 500) changes and actions of a task, oldest first; fewer if they are large."""
    query = {"newest": "true", "limit": str(limit)}
    body = client.request("GET", *path_of(task), "events", query=query).body
    return sorted((*body["events"], *body["actions"]), key=lambda entry: str(entry["time"]))[-limit:]


def durations(client: Client, task: str) -> Mapping[str, Any]:
    """Return how long a task was in each state, as ``GET …/durations`` does."""
    found: Mapping[str, Any] = client.request("GET", *path_of(task), "durations").body
    return found


def builds(client: Client, task: str) -> list[Mapping[str, Any]]:
    """Return the newest starts and stops of a task's workspace, newest first; its id is that of the task."""
    found: list[Mapping[str, Any]] = client.request("GET", "workspaces", show(client, task)["id"], "builds").body
    return found


def build_log(client: Client, task: str, number: int) -> list[Mapping[str, Any]]:
    """Return the log of a start or stop and those of its agents, by time.

    Entries are those of the API, ``BuildLogOut`` and ``AgentLogOut`` in ``docs/openapi.json``. Raise ``ClientError`` if
    there is no such build.
    """
    build = _build(client, show(client, task)["id"], number)
    if build is None:
        message = f"there is no build {number} of task {task!r}"
        advice = f"see those that there are with: taskherd task builds {shlex.quote(task)}"
        raise ClientError(ExitCode.NOT_FOUND, message, advice)
    agents = [agent["id"] for resource in build["resources"] for agent in resource["agents"]]
    paths = (("workspacebuilds", build["id"]), *(("workspaceagents", each) for each in agents))
    return sorted((entry for path in paths for entry in _log(client, path)), key=lambda entry: str(entry["created_at"]))


def _build(client: Client, workspace: str, number: int) -> Mapping[str, Any] | None:
    """Return the build of this number, which may be in a later page of the list."""
    offset = 0
    while True:
        query = {"offset": str(offset)}
        page = client.request("GET", "workspaces", workspace, "builds", query=query).body
        found = next((each for each in page if each["build_number"] == number), None)
        if found is not None or not page or page[-1]["build_number"] < number:
            return found
        offset += len(page)


def _log(client: Client, path: tuple[str, str]) -> Iterator[Mapping[str, Any]]:
    after = 0
    while page := client.request("GET", *path, "logs", query={"after": str(after)}).body:
        yield from page
        after = page[-1]["id"]


def status_and_state(task: Task) -> tuple[str, str]:
    """Return a task's status and its agent's current state, which is "" if the agent has reported none."""
    return task["status"], (task["current_state"] or {}).get("state", "")
