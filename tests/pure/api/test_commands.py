"""Commands on behalf of requests: what a reply means, where else it is looked for, and what the client is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import orjson
import pytest

from taskherd.api import commands
from taskherd.api.command_slots import CommandSlots
from taskherd.api.commands import CommandResult
from taskherd.api.context import RequestContext
from taskherd.api.http.authenticator import Caller
from taskherd.api.http.errors import HTTPError
from taskherd.api.tasks import commands as task_commands
from taskherd.broker.command_client import Reply
from taskherd.domain.command_results import COMMAND_ID_REUSED, NO_VERSION, CommandRefused
from taskherd.domain.commands import Create, Delete, Pause
from taskherd.errors import Misconfigured, Retry, Unavailable
from taskherd.messages.commands import decode_command, digest, encode_command
from taskherd.messages.replies import REPEATED_HEADER, accepted_reply, refused_reply
from taskherd.store import command_log, feed

if TYPE_CHECKING:
    from taskherd.api.context import ApiContext
    from taskherd.domain.commands import Command

ALICE, TASK = UUID(int=1), UUID(int=2)
PAUSE = Pause(command_id=UUID(int=3), task_id=TASK, actor_id=ALICE)
CREATE = Create(
    command_id=UUID(int=4),
    task_id=TASK,
    actor_id=ALICE,
    owner_id=ALICE,
    template_version_id=UUID(int=5),
    template_version_preset_id=None,
    input="Fix it",
    name="",
    display_name="",
    labels=None,
)
DONE = accepted_reply({"id": str(TASK)}, 2)
REPEATED = {REPEATED_HEADER: True}
FAILURES = (Unavailable("away"), Retry("again"), Misconfigured("database_url", "a user with privileges"))

Recorded = Callable[[], Awaitable[Reply | None]]


@dataclass
class Api:
    """What commands need of a process: a broker whose replies a test gives, and who has seen the newest changes."""

    reply: Callable[[Recorded], Awaitable[Reply]]
    marked: list[UUID] = field(default_factory=list)
    sent: list[tuple[str, bytes]] = field(default_factory=list)

    async def call(self, kind: str, body: bytes, recorded: Recorded, *, deadline: float | None) -> Reply:
        """Send a command, and return the reply to it."""
        assert deadline is None or deadline > asyncio.get_running_loop().time()
        self.sent.append((kind, body))
        return await self.reply(recorded)

    @property
    def context(self) -> ApiContext:
        """The same as handlers have it."""
        slots = CommandSlots(asyncio.get_running_loop().time)
        settings = SimpleNamespace(api_command_timeout=60)
        reads = SimpleNamespace(mark=self.marked.append)
        return cast(
            "ApiContext",
            SimpleNamespace(
                commands=self, reads=reads, reader=None, command_slots=slots, settings=settings,
                nullable_ids_as_objects=False,
            ),
        )  # fmt: skip


def replying(body: bytes, *, sent_again: bool = False, **headers: Any) -> Api:
    """Return a process whose commands have this reply."""

    async def reply(_: Recorded) -> Reply:
        return Reply(body, {name.replace("_", "-"): value for name, value in headers.items()}, sent_again)

    return Api(reply)


def failing(error: Exception) -> Api:
    """Return a process whose commands fail like this."""

    async def reply(_: Recorded) -> Reply:
        raise error

    return Api(reply)


def looking() -> Api:
    """Return a process in which no reply comes, and its record is looked for."""

    async def reply(recorded: Recorded) -> Reply:
        found = await recorded()
        if found is None:
            raise Unavailable("no reply")
        return found

    return Api(reply)


def record(monkeypatch: pytest.MonkeyPatch, row: dict[str, Any] | Exception | None) -> list[UUID]:
    """Have the database hold this record of a command; return the ids of those that are looked for."""
    asked: list[UUID] = []

    async def recorded(_: object, command_id: UUID) -> dict[str, Any] | None:
        asked.append(command_id)
        if isinstance(row, Exception):
            raise row
        return row

    monkeypatch.setattr(command_log, "recorded", recorded)
    return asked


def row_of(command: Command, reply: bytes = DONE, age: float = 0.0) -> dict[str, Any]:
    """Return the record of a command that was executed so many seconds ago."""
    executed = decode_command(encode_command(command))
    return {"digest": digest(cast("Command", executed)), "reply": reply.decode(), "age": age}


async def test_a_reply_is_the_result() -> None:
    """What was sent is the command itself; whoever sent it has seen the newest state from then on."""
    interrupt, answered = UUID(int=8), UUID(int=9)
    body = accepted_reply(
        {"id": str(TASK)}, 2, input_id=UUID(int=7), queued=True, interrupt_id=interrupt, answered=answered
    )
    api = replying(body)
    assert await commands.execute(api.context, PAUSE) == CommandResult(
        {"id": str(TASK)}, queued=True, repeated=False, interrupt_id=interrupt, answered=answered
    )
    assert (api.sent, api.marked) == ([("task.pause", encode_command(PAUSE))], [ALICE])
    refusal = CommandRefused(409, "A workspace build is already active.")
    assert await commands.execute(replying(refused_reply(refusal)).context, PAUSE) == refusal


async def test_a_command_without_a_reply_may_have_been_executed() -> None:
    """So its sender reads nothing older afterwards; a reply that cannot be read is none."""
    for api in (failing(Unavailable("no reply")), replying(b"{}"), replying(b"nonsense")):
        with pytest.raises(Unavailable):
            await commands.execute(api.context, PAUSE)
        assert api.marked == [ALICE]


async def test_what_was_sent_again_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply to a repetition of one call does not make it a repetition of the caller's."""
    asked = record(monkeypatch, row_of(PAUSE))
    repeated = {REPEATED_HEADER.replace("-", "_"): True}
    for sent_again, headers, expected, looked_up in (
        (True, repeated, False, True),
        (True, {}, False, False),
        (False, repeated, True, False),
    ):
        asked.clear()
        result = await commands.execute(replying(DONE, sent_again=sent_again, **headers).context, PAUSE)
        assert isinstance(result, CommandResult)
        assert (result.repeated, bool(asked)) == (expected, looked_up)
    record(monkeypatch, None)
    result = await commands.execute(replying(DONE, sent_again=True, **repeated).context, PAUSE)
    assert isinstance(result, CommandResult)
    assert result.repeated


@pytest.mark.parametrize(("age", "is_repeated"), [(0.0, False), (0.05, False), (3_600.0, True)])
async def test_a_reply_is_found_where_the_worker_recorded_it(
    monkeypatch: pytest.MonkeyPatch, age: float, *, is_repeated: bool
) -> None:
    """What was executed before this call was sent is a repetition; the clocks may differ by a moment."""
    asked = record(monkeypatch, row_of(PAUSE, age=age))
    result = await commands.execute(looking().context, PAUSE)
    assert result == CommandResult({"id": str(TASK)}, queued=False, repeated=is_repeated)
    assert asked == [PAUSE.command_id]


async def test_the_record_of_another_command_refuses_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was used for something else."""
    record(monkeypatch, row_of(Delete(command_id=PAUSE.command_id, task_id=TASK, actor_id=ALICE)))
    assert await commands.execute(looking().context, PAUSE) == COMMAND_ID_REUSED


@pytest.mark.parametrize("problem", [None, *FAILURES])
async def test_a_record_that_cannot_be_read_is_none(monkeypatch: pytest.MonkeyPatch, problem: Exception | None) -> None:
    """The reply may still come from the broker."""
    record(monkeypatch, problem)
    with pytest.raises(Unavailable, match="no reply"):
        await commands.execute(looking().context, PAUSE)


async def test_a_repeated_create_shows_only_what_its_caller_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its recorded reply has the task's document; other commands look at the task before they are sent."""
    visible: dict[UUID, bool] = {}

    async def visible_even_deleted(_: object, caller: UUID, task_id: UUID) -> bool:
        assert task_id == TASK
        return visible[caller]

    monkeypatch.setattr(feed, "visible_even_deleted", visible_even_deleted)
    repeated, new = replying(DONE, x_taskherd_repeated=True), replying(DONE)
    for api, command, is_visible, is_shown in (
        (repeated, CREATE, True, True),
        (repeated, CREATE, False, False),
        (repeated, PAUSE, False, True),
        (new, CREATE, False, True),
    ):
        visible[ALICE] = is_visible
        result = await commands.execute(api.context, command)
        assert (result == NO_VERSION, isinstance(result, CommandResult)) == (not is_shown, is_shown)


@pytest.mark.parametrize("problem", FAILURES)
async def test_a_repeated_create_is_not_answered_without_that(
    monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    """Whatever keeps the database from saying so, a later attempt may succeed."""

    async def visible_even_deleted(*_: object) -> bool:
        raise problem

    monkeypatch.setattr(feed, "visible_even_deleted", visible_even_deleted)
    with pytest.raises(Unavailable):
        await commands.execute(replying(DONE, x_taskherd_repeated=True).context, CREATE)


def request_of(api: Api, key: str | None = None) -> RequestContext:
    """Return a request of Alice, perhaps with an idempotency key."""
    headers = {} if key is None else {"idempotency-key": key}
    request = RequestContext(api.context, "POST", {"user": "me"}, {}, headers)
    request.set_caller(Caller(ALICE, "alice", "token"))
    return request


async def test_a_client_is_told_what_became_of_its_command() -> None:
    """A refusal with its status, in the words for who gave a key; and that it may try again without a reply."""
    assert (await commands.send_command(request_of(replying(DONE)), PAUSE)).task == {"id": str(TASK)}
    for refusal, key, message in (
        (CommandRefused(409, "No."), None, "No."),
        (COMMAND_ID_REUSED, None, COMMAND_ID_REUSED.message),
        (COMMAND_ID_REUSED, "k", "Idempotency-Key was used for another request."),
    ):
        with pytest.raises(HTTPError) as refused:
            await commands.send_command(request_of(replying(refused_reply(refusal)), key), PAUSE)
        response = refused.value.response
        assert (response.status, orjson.loads(response.body)["message"]) == (refusal.status, message)
    request = request_of(failing(Unavailable("no reply")))
    with pytest.raises(HTTPError) as unanswered:
        await commands.send_command(request, PAUSE)
    response = unanswered.value.response
    assert (response.status, orjson.loads(response.body)["message"]) == (503, commands.NOT_CONFIRMED)
    assert request.log_fields == {
        "command_id": str(PAUSE.command_id), "task_id": str(TASK), "reason": "no reply",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "repeated", "status"), [("k", True, 200), ("k", False, 201), (None, True, 201), (None, False, 201)]
)
async def test_a_create_is_a_repetition_only_with_a_key(
    monkeypatch: pytest.MonkeyPatch, key: str | None, status: int, *, repeated: bool
) -> None:
    """Without one, whatever was repeated was not the caller's request."""

    async def create_task(*_: object) -> CommandResult:
        return CommandResult({"id": str(TASK)}, queued=False, repeated=repeated)

    monkeypatch.setattr(task_commands, "create_task", create_task)
    response = await task_commands.create(request_of(replying(DONE), key))
    assert (response.status, orjson.loads(response.body)) == (status, {"id": str(TASK)})
