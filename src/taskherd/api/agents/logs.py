"""Handlers of what agents add to the log of their task. An agent's words are never shown as a person's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Final

from pydantic import Field

from taskherd.api.agents.reporting import common_fields, publish
from taskherd.api.agents.schemas import LogReport, LogSnapshot
from taskherd.api.http.errors import HTTPError, not_found, rate_limited
from taskherd.api.http.ids import parse_uuid
from taskherd.api.http.query_parameters import QueryModel, TextParameter
from taskherd.api.http.responses import BufferedResponse, empty
from taskherd.domain.reports import LogEntry, LogSource, TaskLog
from taskherd.domain.value import replace
from taskherd.messages import texts
from taskherd.messages.limits import MAX_ELEMENTS
from taskherd.store import agent_queries

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from uuid import UUID

    from taskherd.api.context import RequestContext

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
    """Publish entries of the conversation as a report, as a runner does.

    An entry of the type `input` stays one only if the agent was given its text; else it becomes output.
    """
    body: LogReport = request.body
    entries = [entry.to_domain({}) for entry in body.entries]
    _charge_log(request, [entry.content for entry in entries])
    common = common_fields(request)
    claimed = [entry.content for entry in entries if entry.type is LogSource.INPUT]
    given = await _given_texts(request, common["task_id"], claimed)
    entries = [
        replace(entry, type=_source(entry.content, given)) if entry.type is LogSource.INPUT else entry
        for entry in entries
    ]
    if entries:
        await publish(request, [TaskLog(**common, entries=tuple(entries))])
    return empty(204)


async def log_snapshot(request: RequestContext) -> BufferedResponse:
    """Publish the end of the conversation as reports, so that it can be read while no agent is running.

    A user's message counts as input only if the agent was given it.
    """
    if request.agent is None or parse_uuid(request.params["id"]) != request.agent[0]:
        raise not_found()
    request.parameters(SnapshotQuery)
    body: LogSnapshot = request.body
    if any(message.role not in _ROLES for message in body.messages):
        raise HTTPError(400, "Invalid agentapi payload structure.", "The role of a message must be user or agent.")
    _charge_log(request, [message.content for message in body.messages])
    common = common_fields(request)
    now: datetime = common["observed_at"]
    claimed = [message.content for message in body.messages if message.role == _USER]
    given = await _given_texts(request, common["task_id"], claimed)
    entries = tuple(
        LogEntry(
            message.id,
            _source(message.content, given) if message.role == _USER else LogSource.OUTPUT,
            texts.sanitize_content(message.content, {}),
            message.time or now,
        )
        for message in body.messages
    )
    parts = [entries[start : start + MAX_ELEMENTS] for start in range(0, len(entries), MAX_ELEMENTS)]
    if parts:
        await publish(request, [TaskLog(**common, entries=part) for part in parts])
    return empty(204)


def _charge_log(request: RequestContext, contents: Sequence[str]) -> None:
    """Count entries against the rate at which a task's log may grow. Raise a 429 if they exceed it."""
    assert request.agent is not None
    task_id, limits = request.agent[0], request.api.rate_limits
    wait = limits.log_entries.acquire(task_id, len(contents)) or limits.log_bytes.acquire(
        task_id, sum(len(content.encode(errors="replace")) for content in contents)
    )
    if wait > 0:
        raise rate_limited(wait, "The log of this task grows too fast. Please wait.")


async def _given_texts(request: RequestContext, task_id: UUID, contents: Iterable[str]) -> set[str]:
    """Return the compact texts of those that are inputs which the agent was given."""
    claimed = {_compact(content) for content in contents}
    if not claimed:
        return set()
    return await agent_queries.given_texts(request.api.reader, task_id, sorted(claimed), max_bytes=MAX_GIVEN_BYTES)


def _source(content: str, given: set[str]) -> LogSource:
    """Return whose words these are that the agent says are a person's."""
    return LogSource.INPUT if _compact(content) in given else LogSource.OUTPUT


def _compact(text: str) -> str:
    """Return a text as ``agent_queries`` compares it, without the white space that agents change."""
    return texts.sanitize(text, {}).translate(_WHITE_SPACE)
