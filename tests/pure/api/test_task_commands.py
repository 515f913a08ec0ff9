"""Which command becomes of a request that changes a task, and what its answer says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid5

import orjson
import pytest

from taskherd.api.agent_requests import handlers as agent_requests
from taskherd.api.agent_requests.schemas import AnswerBody
from taskherd.api.commands import CommandResult
from taskherd.api.context import RequestContext
from taskherd.api.http.authenticator import Caller
from taskherd.api.http.errors import HTTPError
from taskherd.api.http.rate_limit import RateLimiter
from taskherd.api.tasks import commands
from taskherd.api.tasks.schemas import CreateTask, LabelsRequest, SendRequest, TaskInputRequest
from taskherd.api.workspaces import queries
from taskherd.api.workspaces.schemas import NewBuild
from taskherd.domain.commands import (
    Answer,
    Create,
    Delete,
    Interrupt,
    Pause,
    Resume,
    Send,
    UpdateInput,
    UpdateLabels,
)
from taskherd.messages.commands import digest
from taskherd.store import builds, task_queries
from taskherd.store.task_queries import TaskRef
from tests.pure.api import test_build_documents

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from taskherd.api.context import ApiContext
    from taskherd.api.http.responses import BufferedResponse
    from taskherd.domain.commands import Command

ALICE, BOB, TASK, VERSION, PRESET, REQUEST = (UUID(int=number) for number in range(1, 7))
KEY = "nightly-1"
COMMAND = uuid5(ALICE, KEY)
DOCUMENT = {
    "id": str(TASK),
    "workspace_build_number": 4,
    "updated_at": "2026-11-27T11:00:00.000000Z",
    "workspace_id": None,
    "workspace_name": "fix-it",
    "owner_id": str(BOB),
    "owner_name": "bob",
    "organization_id": "",
    "template_version_id": str(VERSION),
    "template_id": "",
    "template_name": "claude",
    "template_display_name": "Claude",
    "template_icon": "",
}


class Commands:
    """A worker that accepts everything, and what was sent to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[Command] = []
        self.result = CommandResult(DOCUMENT, queued=False, repeated=False)
        self.found: UUID | None = TASK
        self.deleted: dict[str, Any] | None = None
        self.owner: tuple[UUID, bool] | None = (BOB, True)
        self.looked_up: list[tuple[Any, ...]] = []
        self.time = 0.0
        self.api = SimpleNamespace(
            reader="reader",
            reads=SimpleNamespace(reader=lambda *_: "reader"),
            rate_limits=SimpleNamespace(creates=RateLimiter(1, 2, lambda: self.time)),
            nullable_ids_as_objects=False,
        )
        for module in (commands, agent_requests, queries):
            monkeypatch.setattr(module, "send_command", self._send)
        monkeypatch.setattr(task_queries, "find_id", self._find_id)
        monkeypatch.setattr(task_queries, "find_deleted", self._find_deleted)
        monkeypatch.setattr(task_queries, "find_owner", self._find_owner)
        build = test_build_documents.row(task_id=TASK)

        async def latest(*_: object) -> object:
            return build

        monkeypatch.setattr(builds, "latest_of_workspace", latest)

    def request(self, body: Any = None, *, key: str = KEY, user: str = "bob", **params: str) -> RequestContext:
        """Return a request of Alice for a task of Bob."""
        headers = {"idempotency-key": key} if key else {}
        path = {"user": user, "task": "fix-it", **params}
        request = RequestContext(cast("ApiContext", self.api), "POST", path, {}, headers, body)
        request.set_caller(Caller(ALICE, "alice", "token"))
        return request

    async def _send(self, _request: RequestContext, command: Command) -> CommandResult:
        self.sent.append(command)
        return self.result

    async def _find_id(self, reader: object, ref: TaskRef) -> UUID | None:
        assert (reader, ref) == ("reader", TaskRef(ALICE, "bob", "fix-it"))
        return self.found

    async def _find_deleted(self, reader: object, ref: TaskRef, command_id: UUID) -> dict[str, Any] | None:
        assert (reader, ref, command_id) == ("reader", TaskRef(ALICE, "bob", "fix-it"), COMMAND)
        return self.deleted

    async def _find_owner(self, *arguments: Any) -> tuple[UUID, bool] | None:
        self.looked_up.append(arguments)
        return self.owner


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Return a worker."""
    return Commands(monkeypatch)


COMMON = {"command_id": COMMAND, "task_id": TASK, "actor_id": ALICE}
SIMPLE: list[tuple[Callable[[RequestContext], Awaitable[BufferedResponse]], Any, Command, int]] = [
    (commands.delete, None, Delete(**COMMON), 202),
    (commands.update_input, TaskInputRequest(input="Fix\0 it"), UpdateInput(**COMMON, input="Fix it"), 204),
    (commands.update_input, TaskInputRequest(), UpdateInput(**COMMON, input=""), 204),
    (commands.send, SendRequest(input="Go\0 on"), Send(**COMMON, input="Go on", interrupt=False), 204),
    (commands.send, SendRequest(input="Stop", interrupt=True), Send(**COMMON, input="Stop", interrupt=True), 204),
]


@pytest.mark.parametrize(("handler", "body", "command", "status"), SIMPLE)
async def test_a_request_becomes_one_command(
    worker: Commands,
    handler: Callable[[RequestContext], Awaitable[BufferedResponse]],
    body: Any,
    command: Command,
    status: int,
) -> None:
    """With the id that its key gives it, and texts without control characters; its answer has no body."""
    response = await handler(worker.request(body))
    assert (response.status, response.body, response.headers) == (status, b"", {})
    assert worker.sent == [command]
    await handler(worker.request(body, key=""))
    assert worker.sent[1].command_id != COMMAND
    worker.found = None
    with pytest.raises(HTTPError) as raised:
        await handler(worker.request(body))
    assert (raised.value.response.status, len(worker.sent)) == (404, 2)


@pytest.mark.parametrize(
    ("queued", "answered", "headers"),
    [
        (False, None, {}),
        (True, None, {"X-Taskherd-Queued": "true"}),
        (False, REQUEST, {"X-Taskherd-Answered": str(REQUEST)}),
    ],
)
async def test_the_answer_to_a_send_says_what_became_of_it(
    worker: Commands, answered: UUID | None, headers: dict[str, str], *, queued: bool
) -> None:
    """Whether it waits, or was an answer."""
    worker.result = CommandResult(DOCUMENT, queued=queued, repeated=False, answered=answered)
    response = await commands.send(worker.request(SendRequest(input="Go on")))
    assert (response.status, response.headers) == (204, headers)


async def test_the_answer_to_an_interrupt_names_it(worker: Commands) -> None:
    """The one that the request has opened or joined."""
    worker.result = CommandResult(DOCUMENT, queued=False, repeated=False, interrupt_id=REQUEST)
    response = await commands.interrupt(worker.request())
    assert (response.status, orjson.loads(response.body)) == (202, {"interrupt_id": str(REQUEST)})
    assert worker.sent == [Interrupt(**COMMON)]


async def test_the_answer_to_new_labels_is_the_task(worker: Commands) -> None:
    """The answer is the document that the task has with the new labels."""
    response = await commands.update_labels(worker.request(LabelsRequest.model_validate({"labels": {"a": "b"}})))
    assert (response.status, orjson.loads(response.body)) == (200, DOCUMENT)
    assert worker.sent == [UpdateLabels(**COMMON, labels={"a": "b"})]


@pytest.mark.parametrize(
    ("handler", "command", "transition"),
    [(commands.pause, Pause(**COMMON), "stop"), (commands.resume, Resume(**COMMON), "start")],
)
async def test_the_answer_to_a_pause_is_its_build(
    worker: Commands,
    handler: Callable[[RequestContext], Awaitable[BufferedResponse]],
    command: Command,
    transition: str,
) -> None:
    """The build that was requested is in it, with the caller as who has requested it."""
    response = await handler(worker.request())
    build = orjson.loads(response.body)["workspace_build"]
    assert (response.status, build["transition"], build["initiator_id"]) == (202, transition, str(ALICE))
    assert (build["initiator_name"], build["workspace_owner_name"]) == ("alice", "bob")
    assert worker.sent == [command]


async def test_a_delete_with_the_key_of_the_one_that_deleted_its_task_is_sent_again(worker: Commands) -> None:
    """It is the same command; without a key, or with that of another command, there is no such task."""
    worker.found, worker.deleted = None, {"id": TASK, "digest": digest(Delete(**COMMON))}
    assert (await commands.delete(worker.request())).status == 202
    assert worker.sent == [Delete(**COMMON)]
    for key, command in (("", Delete(**COMMON)), (KEY, Pause(**COMMON))):
        worker.deleted["digest"] = digest(command)
        with pytest.raises(HTTPError) as raised:
            await commands.delete(worker.request(key=key))
        assert (raised.value.response.status, len(worker.sent)) == (404, 1)


@pytest.mark.parametrize(
    ("transition", "command"),
    [("start", Resume(**COMMON)), ("stop", Pause(**COMMON)), ("delete", Delete(**COMMON))],
)
async def test_a_build_is_requested_of_a_workspace(worker: Commands, transition: str, command: Command) -> None:
    """It resumes, pauses or deletes the workspace's task."""
    body = NewBuild.model_validate({"transition": transition})
    response = await queries.request_build(worker.request(body, id=str(test_build_documents.WORKSPACE)))
    build = orjson.loads(response.body)
    assert (response.status, build["transition"], build["initiator_name"]) == (201, transition, "alice")
    assert (build["initiator_id"], worker.sent) == (str(ALICE), [command])


@pytest.mark.parametrize(
    ("body", "option", "text"),
    [
        ({"option_id": "yes"}, "yes", None),
        ({"text": "Do\0 it"}, None, "Do it"),
        ({"option_id": "no", "text": ""}, "no", ""),
    ],
)
async def test_an_answer_becomes_a_command(
    worker: Commands, body: dict[str, str], option: str | None, text: str | None
) -> None:
    """With the option, the text, or both; a request that cannot be is none of the task's."""
    answer = AnswerBody.model_validate(body)
    response = await agent_requests.answer(worker.request(answer, request=str(REQUEST)))
    assert (response.status, response.body) == (204, b"")
    assert worker.sent == [Answer(**COMMON, request_id=REQUEST, option_id=option, text=text)]
    with pytest.raises(HTTPError) as raised:
        await agent_requests.answer(worker.request(answer, request="x"))
    assert (raised.value.response.status, len(worker.sent)) == (404, 1)


async def test_a_create_with_a_key_is_always_of_the_same_task(worker: Commands) -> None:
    """With the fields of the body, bounded and without control characters."""
    body = CreateTask(
        template_version_id=VERSION,
        template_version_preset_id=PRESET,
        input="Fix\0 it",
        name="n" * 1_001,
        display_name=f" {'d' * 1_001}",
        labels={"a": "b"},
    )
    response = await commands.create(worker.request(body))
    assert (response.status, orjson.loads(response.body)) == (201, DOCUMENT)
    expected = Create(
        command_id=COMMAND,
        task_id=uuid5(COMMAND, "task"),
        actor_id=ALICE,
        owner_id=BOB,
        template_version_id=VERSION,
        template_version_preset_id=PRESET,
        input="Fix it",
        name="n" * 1_000,
        display_name="d" * 1_000,
        labels={"a": "b"},
    )
    assert worker.sent == [expected]
    assert worker.looked_up == [("reader", ALICE, "bob", VERSION)]


async def test_a_create_without_a_key_is_of_a_new_task(worker: Commands) -> None:
    """What the body lacks is empty; the caller is not looked up."""
    await commands.create(worker.request(CreateTask(), key="", user="me"))
    await commands.create(worker.request(CreateTask(labels={}), key="", user="alice"))
    first, second = (cast("Create", each) for each in worker.sent)
    assert len({first.command_id, second.command_id, COMMAND}) == 3
    assert len({first.task_id, second.task_id, uuid5(first.command_id, "task")}) == 3
    for each in (first, second):
        assert (each.owner_id, each.template_version_id, each.template_version_preset_id) == (ALICE, UUID(int=0), None)
        assert (each.input, each.name, each.display_name, each.labels) == ("", "", "", None)
    assert worker.looked_up == []


@pytest.mark.parametrize(
    ("key", "repeated", "status"), [(KEY, True, 200), (KEY, False, 201), ("", True, 201), ("", False, 201)]
)
async def test_a_create_that_was_repeated_says_so(worker: Commands, key: str, status: int, *, repeated: bool) -> None:
    """To who has repeated it, by a key; else it was repeated on the way."""
    worker.result = CommandResult(DOCUMENT, queued=False, repeated=repeated)
    assert (await commands.create(worker.request(CreateTask(input="Fix it"), key=key))).status == status


@pytest.mark.parametrize(
    ("user", "owner", "status", "lookups"),
    [("nobody", None, 404, 1), ("a\0b", (BOB, True), 404, 0), ("bob", (BOB, False), 400, 1)],
)
async def test_an_owner_that_cannot_be(
    worker: Commands, user: str, owner: tuple[UUID, bool] | None, status: int, lookups: int
) -> None:
    """Nobody, or one whose organizations do not have the template; nothing is charged for it."""
    worker.owner = owner
    for _ in range(3):
        with pytest.raises(HTTPError) as raised:
            await commands.create(worker.request(CreateTask(input="Fix it"), user=user))
        assert raised.value.response.status == status
    assert (len(worker.looked_up), worker.sent) == (3 * lookups, [])
    assert worker.api.rate_limits.creates.wait(ALICE, 2) == 0
    if lookups:
        assert worker.looked_up[0] == ("reader", ALICE, user, UUID(int=0))


async def test_creates_are_limited_by_user(worker: Commands) -> None:
    """A create beyond the rate is refused, and told when the next one is accepted."""
    for number in range(2):
        await commands.create(worker.request(CreateTask(input=f"Fix {number}"), user="me"))
    with pytest.raises(HTTPError) as raised:
        await commands.create(worker.request(CreateTask(input="Fix one more"), user="me"))
    response = raised.value.response
    assert (response.status, response.headers["Retry-After"], len(worker.sent)) == (429, "1", 2)
    assert orjson.loads(response.body)["message"] == "You have created too many tasks. Please wait."
