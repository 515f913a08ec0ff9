"""Handlers of what agents add to the log of their task. An agent's words are never shown as a person's.

What an agent calls an input is one only if the agent was given its text. Runners log what they give, so of the agent of
a build that a runner has claimed such an input is left out: it is in the log already.

Entries beyond the rate at which a log may grow are refused; the log says so before the next ones that are accepted.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

from pydantic import Field

from taskherd.api.agents import log_ids
from taskherd.api.agents.refused_logs import RefusedEntries
from taskherd.api.agents.reporting import common_fields, publish
from taskherd.api.agents.schemas import LogReport, LogSnapshot
from taskherd.api.http.errors import HTTPError, not_found, rate_limited
from taskherd.api.http.ids import parse_uuid
from taskherd.api.http.query_parameters import QueryModel, TextParameter
from taskherd.api.http.responses import BufferedResponse, empty
from taskherd.domain.reports import LogEntry, LogKind, LogSource, TaskLog
from taskherd.domain.value import replace
from taskherd.messages import texts
from taskherd.messages.limits import MAX_ELEMENTS
from taskherd.store import agent_queries

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from taskherd.api.context import RequestContext
    from taskherd.store.agent_queries import GivenText

FORMAT: Final = "agentapi"
MAX_GIVEN_BYTES: Final = 64 * 1024
"""Maximum size of a prompt or input that is recognized in a log, in bytes; a snapshot is not larger."""
_USER: Final = "user"
_WHITE_SPACE: Final = dict.fromkeys(map(ord, " \t\n"))
_ROLES: Final = frozenset({_USER, "agent"})


def _format(text: str) -> str:
    if text != FORMAT:
        message = f'Query param "format" has invalid value: expected {FORMAT}'
        raise ValueError(message)
    return text


class SnapshotQuery(QueryModel):
    """Query parameters of a log snapshot."""

    error_message: ClassVar[str] = "Query parameters have invalid values."
    format: Annotated[str, TextParameter(_format, {"type": "string", "enum": [FORMAT]})] = Field(
        description="Format of the body."
    )


async def add_entries(request: RequestContext) -> BufferedResponse:
    """Publish entries of the conversation as a report, as a runner does."""
    body: LogReport = request.body
    entries = [entry.to_domain({}) for entry in body.entries]
    _charge_log(request, [[entry.content, entry.title or "", entry.data or ""] for entry in entries])
    await _publish(request, entries)
    return empty(204)


async def log_snapshot(request: RequestContext) -> BufferedResponse:
    """Publish the end of the conversation as reports, so that it can be read while no agent is running."""
    if request.agent is None or parse_uuid(request.params["id"]) != request.agent[0]:
        raise not_found()
    request.parameters(SnapshotQuery)
    body: LogSnapshot = request.body
    if any(message.role not in _ROLES for message in body.messages):
        raise HTTPError(400, "Invalid agentapi payload structure.", "The role of a message must be user or agent.")
    _charge_log(request, [[message.content] for message in body.messages])
    now = datetime.now(UTC)
    entries = [
        LogEntry(
            message.id,
            LogSource.INPUT if message.role == _USER else LogSource.OUTPUT,
            texts.sanitize_content(message.content, {}),
            message.time or now,
        )
        for message in body.messages
    ]
    await _publish(request, entries)
    return empty(204)


def _charge_log(request: RequestContext, entries: Sequence[Sequence[str]]) -> None:
    """Count entries, each as its texts, against the rate at which a task's log may grow. Raise a 429 if they exceed it.

    A refusal takes nothing, so that what is sent again after the wait is accepted.
    """
    assert request.agent is not None
    task_id, limits = request.agent[0], request.api.rate_limits
    size = sum(len(text.encode(errors="replace")) for parts in entries for text in parts)
    costs = ((limits.log_entries, len(entries)), (limits.log_bytes, size))
    wait = max(limiter.wait(task_id, cost) for limiter, cost in costs)
    if wait > 0:
        request.api.refused_logs.add(task_id, RefusedEntries(len(entries), size, datetime.now(UTC)))
        raise rate_limited(wait, "The log of this task grows too fast. Please wait.")
    for limiter, cost in costs:
        limiter.acquire(task_id, cost)


async def _publish(request: RequestContext, entries: Iterable[LogEntry]) -> None:
    """Publish entries as the agent's, each with its true source and an id of the agent's own.

    A notice of what was refused before comes first.
    """
    assert request.agent is not None
    common = common_fields(request)
    own = await _attribute(request, list(entries))
    refused = request.api.refused_logs.take(request.agent[0])
    if refused is not None:
        own.insert(0, _notice(refused))
    parts = [own[start : start + MAX_ELEMENTS] for start in range(0, len(own), MAX_ELEMENTS)]
    if not parts:
        return
    try:
        await publish(request, [TaskLog(**common, entries=tuple(part)) for part in parts])
    except BaseException:
        if refused is not None:
            request.api.refused_logs.add(request.agent[0], refused)
        raise


def _notice(refused: RefusedEntries) -> LogEntry:
    now = datetime.now(UTC)
    return LogEntry(log_ids.of_notice(now), LogSource.OUTPUT, refused.notice, now, LogKind.NOTICE)


async def _attribute(request: RequestContext, entries: Sequence[LogEntry]) -> list[LogEntry]:
    """Return the entries that are to be added, with source and id. None is a notice: those speak for the system.

    Of the inputs with the same text, the last is the one that was given last, and so on.
    """
    inputs = [entry for entry in entries if entry.type is LogSource.INPUT]
    given = await _given_texts(request, [_compact(entry.content) for entry in inputs])
    assert request.agent is not None
    by_runner = bool(given) and await agent_queries.is_claimed(request.api.reader, *request.agent)
    own = []
    for reported in reversed(entries):
        entry = replace(reported, kind=None) if reported.kind is LogKind.NOTICE else reported
        times = given.get(_compact(entry.content)) if entry.type is LogSource.INPUT else None
        if times and by_runner:
            continue
        if times:
            own.append(replace(entry, id=log_ids.of_input(times.pop())))
        else:
            own.append(replace(entry, id=log_ids.of_output(entry.id), type=LogSource.OUTPUT))
    return own[::-1]


async def _given_texts(request: RequestContext, claimed: Sequence[str]) -> dict[str, list[GivenText]]:
    """Return each of these compact texts that the agent was given, with the times that it was, in order."""
    given: dict[str, list[GivenText]] = {}
    if claimed:
        assert request.agent is not None
        wanted = sorted(set(claimed))
        task_id, _ = request.agent
        for each in await agent_queries.given_texts(request.api.reader, task_id, wanted, max_bytes=MAX_GIVEN_BYTES):
            given.setdefault(each.text, []).append(each)
    return given


def _compact(text: str) -> str:
    """Return a text as ``agent_queries`` compares it, without the white space that agents change."""
    return texts.sanitize(text, {}).translate(_WHITE_SPACE)
