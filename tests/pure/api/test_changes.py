"""Which changes a filter lets through: of tasks that match, and of those that may just have ceased to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import orjson
import pytest

from taskherd.api.changes import Change, ChangeFilter
from taskherd.domain.reports import format_rfc3339
from taskherd.domain.view import LOST_CONNECTION, NOT_RUNNING
from tests.pure.messages.samples import NOW

if TYPE_CHECKING:
    from taskherd.store.read_pool import Row

ALICE, TASK, ACME = (UUID(int=number) for number in (1, 2, 3))
ANY = ChangeFilter(caller=ALICE)
CORE = {
    "name": "Fix-Login-1a2b",
    "status": "active",
    "current_state": {"state": "working", "message": "Reading"},
    "workspace_agent_health": {"healthy": True},
    "stalled_since": None,
    "requests_open": 0,
    "labels": {"repo": "acme/app"},
}
LISTED: dict[str, tuple[ChangeFilter, dict[str, Any], str]] = {
    "health": (
        replace(ANY, health=("lost",)),
        {"workspace_agent_health": {"healthy": False, "reason": LOST_CONNECTION}},
        "workspace_agent_health",
    ),
    "waiting": (replace(ANY, waiting=True), {"requests_open": 2}, "requests_open"),
    "stalled": (replace(ANY, stalled=True), {"stalled_since": "2026-11-27T10:00:00Z"}, "stalled_since"),
    "status": (replace(ANY, status="paused"), {"status": "paused"}, "status"),
    "state": (replace(ANY, state="idle"), {"current_state": {"state": "idle", "message": ""}}, "current_state"),
    "failed by its state": (replace(ANY, failed=True), {"current_state": {"state": "failed"}}, "current_state"),
    "failed by its status": (replace(ANY, failed=True), {"status": "error"}, "status"),
    "label": (replace(ANY, label="label:repo=acme/shop"), {"labels": {"repo": "ACME/shop"}}, "labels"),
}


def change(
    core: dict[str, Any], *changes: str, kind: str | None = "updated", as_objects: bool = False, **columns: Any
) -> Change:
    """Return a change of Alice's task with this core document."""
    row = {
        "position": 7,
        "task_id": TASK,
        "version": 3,
        "revision": 3,
        "owner_id": ALICE,
        "organization_id": ACME,
        "name": "Claude",
        "display_name": "Claude",
        "icon": "/c.svg",
        "template_id": TASK,
        "prompt": "Fix it",
        "username": "alice",
        "avatar_url": "/a.png",
        "cause": '{"kind":"report"}',
        "erased": False,
        "kind": kind,
        "changes": list(changes),
        "core_document": orjson.dumps({**CORE, **core}),
        "occurred_at": NOW,
        "previous_status": None,
        "previous_state": None,
    }
    return Change(cast("Row", {**row, **columns}), nullable_ids_as_objects=as_objects)


@pytest.mark.parametrize(("wanted", "having", "field"), LISTED.values(), ids=LISTED)
def test_a_task_that_has_what_is_wanted_or_may_have_had_it_matches(
    wanted: ChangeFilter, having: dict[str, Any], field: str
) -> None:
    """One that has not matches only if this change altered it: a list learns that the task has left it."""
    assert change(having, "usage").matches(wanted)
    assert change({}, field).matches(wanted)
    assert not change({}, "usage").matches(wanted)
    assert not change({}, field, kind="created").matches(wanted)
    assert change({}, "usage").matches(ANY)


@pytest.mark.parametrize(
    ("wanted", "having"),
    [
        (replace(ANY, waiting=False), {"requests_open": 1}),
        (replace(ANY, stalled=False), {"stalled_since": "2026-11-27T10:00:00Z"}),
        (replace(ANY, failed=False), {"status": "error"}),
    ],
)
def test_what_must_not_be_is_wanted_too(wanted: ChangeFilter, having: dict[str, Any]) -> None:
    """``waiting:false`` and its like are filters of their own."""
    assert change({}, "usage").matches(wanted)
    assert not change(having, "usage").matches(wanted)


@pytest.mark.parametrize(
    ("field", "columns", "expected"),
    [
        ("status", {"previous_status": "paused"}, True),
        ("status", {"previous_status": "error"}, False),
        ("status", {}, True),
        ("usage", {"previous_status": "paused"}, False),
    ],
)
def test_the_status_before_counts_if_it_was_altered(field: str, columns: dict[str, Any], *, expected: bool) -> None:
    """An unknown one may have been the wanted one."""
    assert change({}, field, **columns).matches(replace(ANY, status="paused")) is expected


@pytest.mark.parametrize(
    ("field", "before", "expected"),
    [("current_state", "idle", True), ("current_state", "failed", False), ("current_state", None, True),
     ("usage", "idle", False)],
)  # fmt: skip
def test_the_state_before_counts_if_it_was_altered(field: str, before: str | None, *, expected: bool) -> None:
    """Also if there is none any more, as after a restart of the agent."""
    for core in ({}, {"current_state": None}):
        assert change(core, field, previous_state=before).matches(replace(ANY, state="idle")) is expected


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"kind": None, "erased": False}, (True, False, False)),
        ({"kind": None, "erased": True}, (False, True, False)),
        ({"kind": "updated", "erased": True}, (False, False, False)),
        ({"kind": "deleted", "erased": True}, (False, False, True)),
        ({"kind": "deleted", "erased": False}, (False, False, True)),
    ],
)
def test_what_is_left_of_a_change(columns: dict[str, Any], expected: tuple[bool, bool, bool]) -> None:
    """Without its event it was pruned, unless its task was erased; a deletion stays."""
    found = change({}, **columns)
    assert (found.pruned, found.erased, found.deleted) == expected


@pytest.mark.parametrize("as_objects", [False, True])
def test_a_change_is_one_event_with_the_whole_document(*, as_objects: bool) -> None:
    """Its id is the position to resume at; the document has the names and ids in the configured form."""
    ids = {"workspace_id": None, "workspace_agent_id": None, "workspace_app_id": None}
    found = change(ids, "status", "labels", as_objects=as_objects)
    lines = found.frame.decode().split("\n")
    assert (lines[:2], lines[3:]) == (["id: 7", "event: task.updated"], ["", ""])
    event = orjson.loads(lines[2].removeprefix("data: "))
    assert (event["subject"], event["type"]) == (str(TASK), "dev.taskherd.task.updated.v1")
    data = event["data"]
    assert (data["version"], data["changes"], data["cause"]) == (3, ["status", "labels"], {"kind": "report"})
    task = data["task"]
    assert (task["initial_prompt"], task["owner_name"], task["status"]) == ("Fix it", "alice", "active")
    assert (event["time"], task["updated_at"]) == (format_rfc3339(NOW), format_rfc3339(NOW))
    empty = {"uuid": str(UUID(int=0)), "valid": False}
    assert task["workspace_id"] == (empty if as_objects else None)


@pytest.mark.parametrize(
    ("core", "expected"),
    [
        ({}, {"active", "working"}),
        ({"current_state": None}, {"active", ""}),
        ({"agent_exit": None, "workspace_agent_health": None}, {"active", "working"}),
        ({"agent_exit": {"why": "exited"}}, {"active", "working", "ended"}),
        ({"agent_exit": {"why": "stopped"}, "status": "paused"}, {"paused", "working"}),
        ({"workspace_agent_health": {"healthy": False, "reason": LOST_CONNECTION}}, {"active", "working", "ended"}),
        ({"workspace_agent_health": {"healthy": False, "reason": NOT_RUNNING}}, {"active", "working", "ended"}),
        ({"workspace_agent_health": {"healthy": False, "reason": "app unhealthy"}}, {"active", "working"}),
    ],
)
def test_what_a_long_poll_can_wait_for(core: dict[str, Any], expected: set[str]) -> None:
    """The status, the state that the agent reported, and that no agent runs any more unless it was stopped."""
    assert change(core).long_poll_values == expected


def test_who_may_see_a_change_is_kept_with_it() -> None:
    """The feed offers it to them only."""
    row = cast("Row", {"position": 1, "task_id": TASK, "version": 1, "revision": 1, "owner_id": ALICE})
    assert Change(row, nullable_ids_as_objects=False, viewers={ALICE, ACME}).viewers == {ALICE, ACME}
    assert Change(row, nullable_ids_as_objects=False).viewers == set()


@pytest.mark.parametrize(
    ("own", "other"),
    [
        ({"task": TASK}, {"task": ALICE}),
        ({"owner": ALICE}, {"owner": TASK}),
        ({"organization": ACME}, {"organization": ALICE}),
        ({"template": "claude"}, {"template": "codex"}),
        ({"name": "fix-login"}, {"name": "login"}),
    ],
)
def test_what_a_task_never_changes_decides_alone(own: dict[str, Any], other: dict[str, Any]) -> None:
    """A change of another task, owner, organization, template or name never matches, whatever it altered."""
    altered = ("status", "current_state", "labels", "requests_open", "stalled_since", "workspace_agent_health")
    assert change({}, *altered).matches(replace(ANY, **own))
    assert not change({}, *altered).matches(replace(ANY, **other))
