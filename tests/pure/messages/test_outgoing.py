from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from taskherd.domain import builds
from taskherd.domain.directory import DirectoryNames
from taskherd.domain.outcome import DeadLetterReason
from taskherd.domain.reports import Lifecycle
from taskherd.domain.task import Task
from taskherd.domain.view import AgentHealth, CurrentState, Status, TaskView
from taskherd.messages import agent_tokens, document, events, work
from taskherd.messages.dead_letters import DeadLetterHeaders
from taskherd.messages.decoding import InvalidMessage
from taskherd.messages.document import TaskDocument
from tests.pure.messages.samples import AGENT, NOW, OTHER, TASK

ID = UUID(TASK)
VIEW = TaskView(
    status=Status.ACTIVE,
    workspace_id=UUID(OTHER),
    workspace_name="fix-login",
    workspace_status="running",
    workspace_build_number=1,
    agent_id=UUID(AGENT),
    lifecycle=Lifecycle.READY,
    health=AgentHealth(healthy=True),
    app_id=UUID(OTHER),
    current_state=CurrentState(NOW, "working", "Running the tests", "https://example.com/pr/1"),
)
BARE = TaskView(
    status=Status.PENDING,
    workspace_id=None,
    workspace_name="fix-login",
    workspace_status="",
    workspace_build_number=0,
    agent_id=None,
    lifecycle=None,
    health=None,
    app_id=None,
    current_state=None,
)
THE_TASK = Task(
    id=ID,
    owner_id=UUID(AGENT),
    organization_id=UUID(OTHER),
    template_id=UUID(OTHER),
    template_version_id=UUID(OTHER),
    preset_id=None,
    name="fix-login",
    display_name="Fix the login",
    prompt="Fix the login",
    prompt_version=1,
    created_at=NOW,
    updated_at=NOW,
    version=1,
    deleted_at=None,
    state=builds.initial_state(ID, NOW),
)
NAMES = DirectoryNames(
    owner_name="alice",
    owner_avatar_url="https://example.com/alice.png",
    organization_id=UUID(OTHER),
    template_id=UUID(OTHER),
    template_name="claude",
    template_display_name="Claude Code",
    template_icon="/icon/claude.svg",
)
GOLDEN: dict[str, Any] = {
    "id": TASK,
    "organization_id": OTHER,
    "owner_id": AGENT,
    "owner_name": "alice",
    "owner_avatar_url": "https://example.com/alice.png",
    "name": "fix-login",
    "display_name": "Fix the login",
    "template_id": OTHER,
    "template_version_id": OTHER,
    "template_name": "claude",
    "template_display_name": "Claude Code",
    "template_icon": "/icon/claude.svg",
    "workspace_id": OTHER,
    "workspace_name": "fix-login",
    "workspace_status": "running",
    "workspace_build_number": 1,
    "workspace_agent_id": AGENT,
    "workspace_agent_lifecycle": "ready",
    "workspace_agent_health": {"healthy": True},
    "workspace_app_id": OTHER,
    "initial_prompt": "Fix the login",
    "status": "active",
    "current_state": {
        "timestamp": "2026-03-01T12:00:00.000000Z",
        "state": "working",
        "message": "Running the tests",
        "uri": "https://example.com/pr/1",
    },
    "created_at": "2026-03-01T12:00:00.000000Z",
    "updated_at": "2026-03-01T12:00:01.500000Z",
}
LATER = NOW + timedelta(seconds=1.5)


def rendered(view: TaskView, names: DirectoryNames = NAMES) -> dict[str, Any]:
    """The document as a reader gets it, through JSON."""
    own = document.core_document(view, THE_TASK)
    said: dict[str, Any] = orjson.loads(orjson.dumps(document.render(own, THE_TASK.prompt, names, LATER)))
    text = document.render_json(orjson.dumps(own).decode(), THE_TASK.prompt, names, LATER)
    assert orjson.loads(text) == said  # the two ways to render say the same
    return said


def test_a_full_document_is_the_golden_one() -> None:
    """The fields, names and formats of the Tasks API, as its servers really send them."""
    assert rendered(VIEW) == GOLDEN
    assert GOLDEN.keys() == TaskDocument.model_fields.keys()
    TaskDocument.model_validate_json(orjson.dumps(GOLDEN))


def test_an_empty_document_has_nulls_and_leaves_three_fields_out() -> None:
    """Ids, state, lifecycle and health are null; avatar, workspace status and build number are left out when empty."""
    nulls = {
        "workspace_id",
        "workspace_agent_id",
        "workspace_app_id",
        "workspace_agent_lifecycle",
        "workspace_agent_health",
        "current_state",
    }
    said = rendered(BARE, replace(NAMES, owner_avatar_url=""))
    assert {name for name, value in said.items() if value is None} == nulls
    assert GOLDEN.keys() - said.keys() == {"owner_avatar_url", "workspace_status", "workspace_build_number"}
    TaskDocument.model_validate_json(orjson.dumps(said))


def test_an_ill_agent_has_a_reason() -> None:
    """``reason`` is there exactly when the agent is not healthy."""
    said = rendered(replace(VIEW, health=AgentHealth(healthy=False, reason="agent has lost connection")))
    assert said["workspace_agent_health"] == {"healthy": False, "reason": "agent has lost connection"}


def test_the_own_part_survives_json_and_holds_nothing_of_the_directory() -> None:
    """What is kept with the task equals what is read back, so an equal one is no change; names are added on reading."""
    own = document.core_document(VIEW, THE_TASK)
    assert orjson.loads(orjson.dumps(own)) == own
    assert document.changed_fields(orjson.loads(orjson.dumps(own)), own) == ()
    assert GOLDEN.keys() - own.keys() == {
        "organization_id",
        "owner_name",
        "owner_avatar_url",
        "template_id",
        "template_name",
        "template_display_name",
        "template_icon",
        "initial_prompt",
        "updated_at",
    }


def test_changes_name_what_differs() -> None:
    """A field that came, went or has another value is named, in order; nothing else is."""
    before, after = (
        document.core_document(BARE, THE_TASK),
        document.core_document(replace(BARE, workspace_status="starting"), THE_TASK),
    )
    assert document.changed_fields(before, after) == ("workspace_status",)
    assert document.changed_fields(after, before) == ("workspace_status",)
    assert document.changed_fields({}, after) == tuple(sorted(after))
    assert document.changed_fields(before, document.core_document(replace(BARE, status=Status.ERROR), THE_TASK)) == (
        "status",
    )


def event(version: int, kind: events.EventKind = events.EventKind.UPDATED, prompt: str = "") -> events.ChangeEvent:
    """An event of the golden task."""
    return events.ChangeEvent(
        task_id=ID,
        version=version,
        kind=kind,
        occurred_at=LATER,
        task=orjson.dumps({**GOLDEN, "initial_prompt": prompt}),
        changes=("status",),
        cause='{"kind":"report","type":"app.status","id":"1/7"}',
    )


def test_an_event_is_a_cloud_event() -> None:
    """The attributes of CloudEvents 1.0, an id that stays the same over repeats, and the change as its data."""
    said = orjson.loads(events.encode_event(event(7)))
    events.CloudEvent.model_validate_json(orjson.dumps(said))
    assert {name: said[name] for name in said if name != "data"} == {
        "specversion": "1.0",
        "id": str(events.event_id(ID, 7)),
        "source": "taskherd",
        "type": "dev.taskherd.task.updated.v1",
        "subject": TASK,
        "time": "2026-03-01T12:00:01.500000Z",
        "datacontenttype": "application/json",
    }
    assert said["data"].keys() == {"task", "version", "changes", "cause"}
    assert events.event_id(ID, 7) != events.event_id(ID, 8)


@given(
    st.lists(st.tuples(st.sampled_from([*events.EventKind]), st.integers(0, 3000)), max_size=12),
    st.integers(1, 9000),
)
def test_packing_keeps_every_event_within_the_bound(drawn: list[tuple[events.EventKind, int]], most: int) -> None:
    """Every event is in exactly one message, of its kind and in order; a message is within the bound or one event."""
    several = [event(version, kind, "x" * size) for version, (kind, size) in enumerate(drawn, 1)]
    batches = events.pack_events(several, most)
    for kind in events.EventKind:
        assert [each for batch in batches if batch.kind is kind for each in batch.events] == [
            each for each in several if each.kind is kind
        ]
    for batch in batches:
        assert batch.routing_key == f"task.{batch.kind.value}"
        assert len(batch.body) <= most or len(batch.events) == 1
        assert [each["data"]["version"] for each in orjson.loads(batch.body)] == [each.version for each in batch.events]


def test_packing_fills_a_message_to_the_last_byte() -> None:
    """Two events that fit exactly travel together; with one byte less they do not."""
    pair = [event(1), event(2)]
    size = sum(len(events.encode_event(each)) for each in pair) + 3
    assert [len(batch.body) for batch in events.pack_events(pair, size)] == [size]
    assert len(events.pack_events(pair, size - 1)) == 2


@pytest.mark.parametrize("request_type", ["workspace.start", "workspace.stop", "workspace.delete", "agent.input"])
def test_work_requests_come_back_as_they_went(request_type: str) -> None:
    """A runner reads exactly what the worker asked for."""
    said: dict[str, Any] = {
        "type": request_type,
        "request_id": OTHER,
        "attempt": 1,
        "task_id": TASK,
        "task_name": "fix-login",
        "owner": {"id": AGENT, "username": "alice"},
        "build_number": 1,
        "build_id": str(work.build_id(ID, 1)),
        "template_version_id": OTHER,
        "run": {"pool": "default"},
    }
    more: dict[str, dict[str, Any]] = {
        "workspace.start": {"prompt": "Fix it", "preset": None, "agent_token": "secret-token"},
        "agent.input": {"input_id": OTHER, "input": "go on"},
    }
    said |= more.get(request_type, {})
    request = work.decode_request(orjson.dumps(said))
    assert not isinstance(request, InvalidMessage)
    assert orjson.loads(work.encode(request)) == said
    assert work.decode_request(work.encode(request)) == request
    assert "secret-token" not in repr(request)
    assert work.routing_key(request.type, "default") == f"{request_type}.default"


@given(st.uuids(), st.integers(1, 2**31 - 1), st.text(min_size=1).filter(lambda key: key.isascii()))
def test_an_agent_token_speaks_for_its_task_and_build(task_id: UUID, number: int, key: str) -> None:
    """A token is the same whenever it is derived, is accepted under an old key that is still listed, and no other."""
    token = agent_tokens.agent_token(key, task_id, number)
    assert token == agent_tokens.agent_token(key, task_id, number)
    assert agent_tokens.verify_agent_token(["new", key], token) == (task_id, number)
    assert agent_tokens.verify_agent_token([key + "x"], token) is None
    head, build, mac = token.split(".")
    assert agent_tokens.verify_agent_token([key], f"{head}.{int(build) + 1}.{mac}") is None


@pytest.mark.parametrize(
    "token", ["", ".", "é", f"{UUID(TASK).hex}.1.{'A' * 43}", f"{TASK}.1.{'A' * 43}", "a" * 10_000]
)
def test_no_other_text_is_a_token(token: str) -> None:
    """What no key made speaks for nobody."""
    assert agent_tokens.verify_agent_token(["key"], token) is None


def test_dead_letter_headers_are_read_by_their_names() -> None:
    """The header names are the contract; a reason outside the list is refused."""
    read = DeadLetterHeaders.model_validate({"x-taskherd-reason": "too_many", "x-taskherd-index": 3, "other": 1})
    assert (read.reason, read.index) == (DeadLetterReason.TOO_MANY, 3)
    with pytest.raises(ValidationError):
        DeadLetterHeaders.model_validate({"x-taskherd-reason": "whatever"})
