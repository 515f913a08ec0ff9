"""The work requests for what a batch decided, and what they say of new tasks."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid5

import pytest

from taskherd.domain.reports import Transition
from taskherd.domain.updates import TaskUpdate
from taskherd.domain.value import replace
from taskherd.store.directory import Owner, Preset, TemplateVersion
from taskherd.store.work_request_details import WorkRequestDetails
from taskherd.store.work_requests import WorkRequestRow
from taskherd.worker import related_rows
from taskherd.worker.directory_cache import NO_ENTRIES, DirectoryEntries
from tests.harness.histories import NOON, TASK
from tests.harness.tasks import make_task
from tests.pure.domain.mutated_core import unchanged_core
from tests.pure.domain.test_fold import build, folded

ONE, TWO, THREE, OTHER = (UUID(int=number) for number in (11, 12, 13, 14))
LATER = NOON + timedelta(minutes=1)


def update(state: Any = None, **fields: Any) -> TaskUpdate:
    """Return the update of a task with this state."""
    task = make_task(TASK, state=state or folded(unchanged_core(), [build(runner="r1")]))
    return TaskUpdate(task, task, **fields)


def test_requests_for_what_a_batch_decided() -> None:
    """A build, an input, an interrupt and an answer, each with an id that is the same if it is decided again."""
    state = replace(folded(unchanged_core(), [build(2, runner="r1")]), requested_builds={3: Transition.STOP})
    changed = update(
        state, requested_builds=[3], sent_input=ONE, opened_interrupt=TWO, opened_answers={THREE: "r2", OTHER: None}
    )
    assert related_rows.new_requests({TASK: update(), ONE: changed}, LATER) == [
        WorkRequestRow(uuid5(TASK, "request/3"), TASK, 3, "workspace.stop", None, "r1", 0, LATER, LATER, None),
        WorkRequestRow(ONE, TASK, 2, "agent.input", ONE, "r1", 0, LATER, LATER, None),
        WorkRequestRow(
            uuid5(TASK, f"interrupt/{TWO}"), TASK, 2, "agent.interrupt", None, "r1", 0, LATER, LATER, None, TWO
        ),
        WorkRequestRow(
            uuid5(TASK, f"answer/{THREE}"), TASK, 2, "agent.answer", None, "r2", 0, LATER, LATER, None, None, THREE
        ),
        WorkRequestRow(
            uuid5(TASK, f"answer/{OTHER}"), TASK, 2, "agent.answer", None, None, 0, LATER, LATER, None, None, OTHER
        ),
    ]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"requested_builds": [1]}, "workspace.start"),
        ({"sent_input": ONE}, "agent.input"),
        ({"opened_interrupt": ONE}, "agent.interrupt"),
        ({"opened_answers": {ONE: None}}, "agent.answer"),
    ],
)
def test_one_decision_is_one_request(fields: dict[str, Any], kind: str) -> None:
    """To no runner if none is known."""
    state = replace(folded(unchanged_core(), [build()]), requested_builds={1: Transition.START})
    (row,) = related_rows.new_requests({TASK: update(state, **fields)}, LATER)
    assert (row.type, row.target_runner, row.attempt) == (kind, None, 0)


def test_the_details_of_a_new_task_are_known_without_reading_them() -> None:
    """Those of one that existed are read when its requests are sent."""
    version = TemplateVersion(
        UUID(int=4), UUID(int=3), UUID(int=2), "v1", {"pool": "gpu"}, usable=True,
        presets={ONE: Preset("Small", {"size": "small"})},
    )  # fmt: skip
    owner = Owner(UUID(int=1), "alice", active=True, organizations=frozenset())
    entries = DirectoryEntries({owner.id: owner}, {version.id: version})
    task = make_task(TASK, preset_id=ONE, prompt="Do it")
    expected = WorkRequestDetails(
        task_id=TASK, task_name=task.name, owner_id=owner.id, owner_username="alice", template_version_id=version.id,
        prompt="Do it", run={"pool": "gpu"}, preset_id=ONE, preset_name="Small", preset_parameters={"size": "small"},
    )  # fmt: skip
    assert related_rows.request_details(TaskUpdate(None, task), entries) == expected
    bare = dataclasses.replace(expected, preset_id=None, preset_name=None, preset_parameters=None)
    assert related_rows.request_details(TaskUpdate(None, replace(task, preset_id=None)), entries) == bare
    assert related_rows.request_details(TaskUpdate(task, task), NO_ENTRIES) is None
    assert related_rows.request_details(TaskUpdate(None, None), NO_ENTRIES) is None
