"""Published messages: the task document, events, work requests, agent tokens and dead-letter headers."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from taskherd.domain.builds import initial_state
from taskherd.domain.directory import DirectoryNames
from taskherd.domain.outcome import DeadLetterReason
from taskherd.domain.reports import ExitReason, Lifecycle
from taskherd.domain.request_values import RequestKind
from taskherd.domain.task import OpenAgentRequest, Task
from taskherd.domain.usage import ContextTokens, TaskUsage, UsageAmounts
from taskherd.domain.view import LOST_CONNECTION, NOT_RUNNING, AgentHealth, CurrentState, EndedAgent, Status, TaskView
from taskherd.messages import agent_tokens, document, events, work
from taskherd.messages.dead_letters import DeadLetterHeaders
from taskherd.messages.decoding import InvalidMessage
from taskherd.messages.document import Ending, TaskDocument
from tests.harness.tasks import make_task
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
    agent_exit=EndedAgent(ExitReason.SIGNALLED, None, 9, "so long", NOW),
    stalled_since=NOW,
    usage=TaskUsage(
        UsageAmounts((1200, 300, 50_000, 0), {"USD": Decimal("0.0123"), "EUR": Decimal("3.0")}),
        ContextTokens(1, 1, 51_500),
    ),
    interrupted_since=NOW,
    requests=tuple(
        OpenAgentRequest(UUID(int=number), 1, number, RequestKind.QUESTION, f"Question {number}?", NOW)
        for number in range(12)
    ),
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
    agent_exit=None,
    stalled_since=None,
    usage=None,
    interrupted_since=None,
    requests=(),
)
THE_TASK = make_task(
    ID,
    owner_id=UUID(AGENT),
    organization_id=UUID(OTHER),
    template_id=UUID(OTHER),
    template_version_id=UUID(OTHER),
    name="fix-login",
    display_name="Fix the login",
    prompt="Fix the login",
    created_at=NOW,
    updated_at=NOW,
    state=replace(initial_state(ID, NOW), labels={"repo": "acme/app"}),
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
    "agent_exit": {
        "why": "signalled",
        "status": None,
        "signal": 9,
        "words": "so long",
        "at": "2026-03-01T12:00:00.000000Z",
    },
    "stalled_since": "2026-03-01T12:00:00.000000Z",
    "usage": {
        "input_tokens": 1200,
        "output_tokens": 300,
        "cache_read_tokens": 50_000,
        "cache_write_tokens": 0,
        "cost": [{"amount": "3", "currency": "EUR"}, {"amount": "0.0123", "currency": "USD"}],
        "context_used": 51_500,
        "context_size": None,
    },
    "interrupt": {"since": "2026-03-01T12:00:00.000000Z"},
    "requests": [
        {
            "id": str(UUID(int=number)),
            "kind": "question",
            "title": f"Question {number}?",
            "since": "2026-03-01T12:00:00.000000Z",
        }
        for number in range(10)
    ],
    "requests_open": 12,
    "labels": {"repo": "acme/app"},
    "created_at": "2026-03-01T12:00:00.000000Z",
    "updated_at": "2026-03-01T12:00:01.500000Z",
}
LATER = NOW + timedelta(seconds=1.5)


def rendered(view: TaskView, names: DirectoryNames = NAMES, task: Task = THE_TASK) -> dict[str, Any]:
    """Return the rendered document after JSON encoding, which both ways of rendering must give."""
    core = document.core_document(view, task)
    fields: dict[str, Any] = orjson.loads(orjson.dumps(document.render(core, THE_TASK.prompt, names, LATER)))
    text = document.render_json(orjson.dumps(core).decode(), THE_TASK.prompt, names, LATER)
    assert orjson.loads(text) == fields
    return fields


def test_a_full_document_is_the_golden_one() -> None:
    """The document has the fields, names and formats of the Tasks API, as its servers send them."""
    assert rendered(VIEW) == GOLDEN
    assert GOLDEN.keys() == TaskDocument.model_fields.keys()
    model = TaskDocument.model_validate_json(orjson.dumps(GOLDEN))
    assert (len(model.requests), model.requests_open) == (10, 12), "the first 10 requests, and how many there are"


def test_an_empty_document_has_nulls_and_omits_four_fields() -> None:
    """Ids, state, lifecycle and health are null; avatar, workspace status, build number and labels are left out."""
    nulls = {
        "workspace_id",
        "workspace_agent_id",
        "workspace_app_id",
        "workspace_agent_lifecycle",
        "workspace_agent_health",
        "current_state",
        "agent_exit",
        "stalled_since",
        "usage",
        "interrupt",
    }
    fields = rendered(BARE, replace(NAMES, owner_avatar_url=""), replace(THE_TASK, state=initial_state(ID, NOW)))
    assert {name for name, value in fields.items() if value is None} == nulls
    assert GOLDEN.keys() - fields.keys() == {
        *("owner_avatar_url", "workspace_status", "workspace_build_number", "labels")
    }
    model = TaskDocument.model_validate_json(orjson.dumps(fields))
    assert (model.owner_avatar_url, model.workspace_status, model.workspace_build_number, model.labels) == (
        "",
        "",
        0,
        {},
    )


def test_an_unhealthy_agent_has_a_reason() -> None:
    """``reason`` is present exactly if the agent is not healthy."""
    fields = rendered(replace(VIEW, health=AgentHealth(healthy=False, reason="agent has lost connection")))
    assert fields["workspace_agent_health"] == {"healthy": False, "reason": "agent has lost connection"}


def test_the_core_document_survives_json_and_contains_no_directory_names() -> None:
    """The core document is equal after it was stored as JSON; the directory's names are added on rendering."""
    core = document.core_document(VIEW, THE_TASK)
    assert orjson.loads(orjson.dumps(core)) == core
    assert document.changed_fields(orjson.loads(orjson.dumps(core)), core) == ()
    assert GOLDEN.keys() - core.keys() == {
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


def test_ids_that_may_be_null_have_two_fields_where_clients_expect_them() -> None:
    """The nil UUID stands for none, as in ``uuid.NullUUID`` of Go; other ids stay texts."""
    present = document.with_nullable_ids({**GOLDEN})
    nil = {"uuid": "00000000-0000-0000-0000-000000000000", "valid": False}
    names = ("workspace_id", "workspace_agent_id", "workspace_app_id")
    ids = {name: {"uuid": GOLDEN[name], "valid": True} for name in names}
    assert present == {**GOLDEN, **ids}
    assert document.with_nullable_ids({**GOLDEN, **dict.fromkeys(names)}) == {**GOLDEN, **dict.fromkeys(names, nil)}


def test_changed_fields_are_named() -> None:
    """A field that was added, removed or changed is named, in alphabetical order."""
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
    """Return an event of the golden task."""
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
    """An event has the attributes of CloudEvents 1.0, an id that repetitions share, and the change as its data."""
    fields = orjson.loads(events.encode_event(event(7)))
    events.CloudEvent.model_validate_json(orjson.dumps(fields))
    assert {name: fields[name] for name in fields if name != "data"} == {
        "specversion": "1.0",
        "id": str(events.event_id(ID, 7)),
        "source": "taskherd",
        "type": "dev.taskherd.task.updated.v1",
        "subject": TASK,
        "time": "2026-03-01T12:00:01.500000Z",
        "datacontenttype": "application/json",
    }
    assert fields["data"].keys() == {"task", "version", "changes", "cause"}
    assert events.event_id(ID, 7) != events.event_id(ID, 8)


@given(
    st.lists(st.tuples(st.sampled_from([*events.EventKind]), st.integers(0, 3000)), max_size=12),
    st.integers(1, 9000),
)
def test_packed_messages_contain_every_event_within_the_limit(
    drawn: list[tuple[events.EventKind, int]], max_bytes: int
) -> None:
    """Every event is in one message, of its kind and in order; a message is within the limit or has one event."""
    packed = [event(version, kind, "x" * size) for version, (kind, size) in enumerate(drawn, 1)]
    batches = events.pack_events(packed, max_bytes)
    for kind in events.EventKind:
        assert [each for batch in batches if batch.kind is kind for each in batch.events] == [
            each for each in packed if each.kind is kind
        ]
    for batch in batches:
        assert batch.routing_key == f"task.{batch.kind.value}"
        assert len(batch.body) <= max_bytes or len(batch.events) == 1
        assert [each["data"]["version"] for each in orjson.loads(batch.body)] == [each.version for each in batch.events]


@pytest.mark.parametrize("version", [0, 1])
def test_versions_begin_with_1(version: int) -> None:
    """An event of an earlier one is not of this contract."""
    body = events.encode_event(event(version))
    if version:
        assert events.CloudEvent.model_validate_json(body).data.version == 1
    else:
        with pytest.raises(ValidationError, match="version"):
            events.CloudEvent.model_validate_json(body)


def test_packing_fills_every_message() -> None:
    """Each message after the first holds as much."""
    fours = [event(number) for number in range(1, 5)]
    size = 2 * len(events.encode_event(event(1))) + 3
    assert [len(batch.body) for batch in events.pack_events(fours, size)] == [size, size]
    assert [len(batch.events) for batch in events.pack_events(fours, size - 1)] == [1, 1, 1, 1]
    kinds = [event(1), event(2, events.EventKind.DELETED), event(3)]
    assert [(batch.routing_key, batch.events) for batch in events.pack_events(kinds)] == [
        ("task.updated", (kinds[0], kinds[2])),
        ("task.deleted", (kinds[1],)),
    ]


def test_packing_fills_a_message_completely() -> None:
    """Two events that fit exactly are in one message; with a limit of one byte less they are not."""
    pair = [event(1), event(2)]
    size = sum(len(events.encode_event(each)) for each in pair) + 3
    assert [len(batch.body) for batch in events.pack_events(pair, size)] == [size]
    assert len(events.pack_events(pair, size - 1)) == 2
    empty = len(events.encode_event(event(1)))
    for more, messages in ((0, 1), (1, 2)):
        halves = [
            event(1, prompt="x" * (256 * 1024 - empty - 2)),
            event(2, prompt="x" * (256 * 1024 - empty - 1 + more)),
        ]
        assert len(events.pack_events(halves)) == messages, "a message has up to 512 KiB"


def test_the_types_of_work_requests() -> None:
    """Queues of runners are bound for each of them."""
    workspaces = ("workspace.start", "workspace.stop", "workspace.delete")
    assert {*work.REQUEST_TYPES} == {*workspaces, "agent.input", "agent.interrupt", "agent.answer"}


@pytest.mark.parametrize("request_type", work.REQUEST_TYPES)
def test_work_requests_survive_a_round_trip(request_type: str) -> None:
    """A decoded work request is equal to the encoded one."""
    fields: dict[str, Any] = {
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
    by_type: dict[str, dict[str, Any]] = {
        "workspace.start": {"prompt": "Fix it", "preset": None, "agent_token": "secret-token"},
        "agent.input": {"input_id": OTHER, "input": "go on"},
        "agent.interrupt": {"interrupt_id": OTHER},
        "agent.answer": {"option_id": "allow", "text": None},
    }
    fields |= by_type.get(request_type, {})
    request = work.decode_request(orjson.dumps(fields))
    assert not isinstance(request, InvalidMessage)
    assert orjson.loads(work.encode_request(request)) == fields
    assert work.decode_request(work.encode_request(request)) == request
    assert "secret-token" not in repr(request)
    assert work.routing_key(request.type, "default") == f"{request_type}.default"


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"attempt": 0}, "attempt: Input should be greater than or equal to 1"),
        ({"build_number": 0}, "build_number: Input should be greater than or equal to 1"),
        ({"build_number": 2**31}, "build_number: Input should be less than or equal to 2147483647"),
        ({"owner": {"id": AGENT}}, "owner.username: Field required"),
        ({"type": "workspace.paint"}, "type: 'workspace.paint' is not known"),
    ],
)
def test_an_invalid_work_request_is_a_value(changes: dict[str, Any], detail: str) -> None:
    """A runner gets the reason and the body, and no exception; the limits themselves are valid."""
    fields: dict[str, Any] = {
        "type": "workspace.stop",
        "request_id": OTHER,
        "attempt": 1,
        "task_id": TASK,
        "task_name": "paint",
        "owner": {"id": AGENT, "username": "bob"},
        "build_number": 2**31 - 1,
        "build_id": OTHER,
        "template_version_id": OTHER,
        "run": {},
    }
    assert isinstance(work.decode_request(orjson.dumps(fields)), work.WorkspaceStop)
    body = orjson.dumps({**fields, **changes})
    invalid = work.decode_request(body)
    assert isinstance(invalid, InvalidMessage)
    assert (invalid.detail, invalid.body, invalid.index) == (detail, body, None)
    assert isinstance(work.decode_request(b"x"), InvalidMessage)


def test_a_request_for_another_pool_says_no_names() -> None:
    """It has all ids, and neither the names of the task and its owner nor what the template tells runners."""
    stop = work.WorkspaceStop(
        request_id=UUID(OTHER),
        attempt=2,
        task_id=ID,
        task_name="secret-plan",
        owner=work.WorkRequestOwner(id=UUID(AGENT), username="carol"),
        build_number=3,
        build_id=work.build_id(ID, 3),
        template_version_id=UUID(OTHER),
        run={"command": ["true"]},
    )
    redacted = orjson.loads(work.encode_request(work.redact(stop)))
    fields = orjson.loads(work.encode_request(stop))
    assert redacted == {**fields, "task_name": "", "run": {}, "owner": {"id": AGENT, "username": ""}}


@given(st.uuids(), st.integers(1, 2**31 - 1), st.text(min_size=1).filter(lambda key: key.isascii()))
def test_an_agent_token_identifies_its_task_and_build(task_id: UUID, number: int, key: str) -> None:
    """A token is the same at every call, and valid with any listed key that made it, and no other."""
    token = agent_tokens.agent_token(key, task_id, number)
    assert token == agent_tokens.agent_token(key, task_id, number)
    assert agent_tokens.verify_agent_token(["new", key], token) == (task_id, number)
    assert agent_tokens.verify_agent_token([key + "x"], token) is None
    head, build, mac = token.split(".")
    assert agent_tokens.verify_agent_token([key], f"{head}.{int(build) + 1}.{mac}") is None


@pytest.mark.parametrize(
    ("status", "reason", "state", "ending"),
    [
        ("error", None, "complete", Ending.FAILED),
        ("active", LOST_CONNECTION, "complete", Ending.FAILED),
        ("active", NOT_RUNNING, None, Ending.FAILED),
        ("active", "agent is busy", "complete", Ending.COMPLETED),
        ("active", "agent is busy", "working", None),
        ("active", None, "failed", Ending.FAILED),
        ("paused", None, "complete", Ending.COMPLETED),
        ("active", None, "idle", None),
        ("active", None, None, None),
    ],
)
def test_what_became_of_a_task(status: str, reason: str | None, state: str | None, ending: Ending | None) -> None:
    """One that failed, or whose agent is gone, has failed whatever it said; other bad health does not end it."""
    for health in ({"healthy": False, "reason": reason},) if reason else (None, {"healthy": True}):
        current_state = state and {"state": state, "message": "A text"}
        fields = {"status": status, "workspace_agent_health": health, "current_state": current_state}
        assert document.ending_of(fields) is ending


def test_an_agent_token_has_the_same_signature_in_every_release() -> None:
    """Agents keep their tokens during an upgrade; ``openssl dgst -sha256 -hmac KEY`` makes the same signature."""
    token = agent_tokens.agent_token(
        "a key of at least 32 characters!!", UUID("7f0c2f5e-51d5-4a3b-9a50-0d7b2a6f1c11"), 12
    )
    assert token == "7f0c2f5e51d54a3b9a500d7b2a6f1c11.12.P7g7B8MBo4ahQscpUO2_ortASQicX1LdnYWVHGzvKYY"


@pytest.mark.parametrize(
    "token", ["", ".", "é", f"{UUID(TASK).hex}.1.{'A' * 43}", f"{TASK}.1.{'A' * 43}", "a" * 10_000]
)
def test_other_texts_are_not_tokens(token: str) -> None:
    """A text that no key made is not a valid token."""
    assert agent_tokens.verify_agent_token(["key"], token) is None


def test_dead_letter_headers_are_decoded_by_their_names() -> None:
    """The header names are part of the contract; an unlisted reason is invalid."""
    headers = DeadLetterHeaders.model_validate({"x-taskherd-reason": "too_many", "x-taskherd-index": 3, "other": 1})
    assert (headers.reason, headers.index) == (DeadLetterReason.TOO_MANY, 3)
    with pytest.raises(ValidationError):
        DeadLetterHeaders.model_validate({"x-taskherd-reason": "whatever"})
