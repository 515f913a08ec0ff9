"""Which changes a filter lets through: of tasks that match, and of those that may just have ceased to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import orjson
import pytest

from taskherd.api.changes import Change, ChangeFilter
from taskherd.domain.view import LOST_CONNECTION
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
    "failed by its state": (replace(ANY, failed=True), {"current_state": {"state": "failed"}}, "current_state"),
    "failed by its status": (replace(ANY, failed=True), {"status": "error"}, "status"),
    "label": (replace(ANY, label="label:repo=acme/shop"), {"labels": {"repo": "ACME/shop"}}, "labels"),
}


def change(core: dict[str, Any], *changes: str, kind: str = "updated", **columns: Any) -> Change:
    """Return a change of Alice's task with this core document."""
    row = {
        "position": 7,
        "task_id": TASK,
        "version": 3,
        "revision": 3,
        "owner_id": ALICE,
        "organization_id": ACME,
        "name": "Claude",
        "kind": kind,
        "changes": list(changes),
        "core_document": orjson.dumps({**CORE, **core}),
        "occurred_at": NOW,
        "previous_status": None,
        "previous_state": None,
    }
    return Change(cast("Row", {**row, **columns}), nullable_ids_as_objects=False)


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
