from __future__ import annotations

import uuid
from typing import Any

import pytest

from taskherd.messages.work import WorkRequestOwner, WorkspaceDelete, WorkspaceStart, WorkspaceStop
from taskherd.runner.journal import Journal, Phase

TASK = uuid.UUID("00000000-0000-4000-8000-000000000001")


def request(kind: str, build_number: int) -> WorkspaceStart | WorkspaceStop | WorkspaceDelete:
    """Return a work request of this kind."""
    common: dict[str, Any] = {
        "request_id": TASK,
        "attempt": 1,
        "task_id": TASK,
        "task_name": "a",
        "owner": WorkRequestOwner(id=TASK, username="alice"),
        "build_number": build_number,
        "build_id": TASK,
        "template_version_id": TASK,
        "run": {},
    }
    match kind:
        case "start":
            return WorkspaceStart(**common, prompt="Do it", preset=None, agent_token="t")
        case "stop":
            return WorkspaceStop(**common)
        case _:
            return WorkspaceDelete(**common)


def started(build_number: int) -> Journal:
    """Return the journal of a task whose workspace is up."""
    journal = Journal(task_id=TASK, task_name="a")
    journal.accept(request("start", build_number))
    journal.phase = Phase.DONE
    return journal


@pytest.mark.parametrize(("kind", "build_number"), [("delete", 2), ("start", 2), ("start", 3), ("stop", 3)])
def test_a_drain_gives_way_to_another_request_with_its_number(kind: str, build_number: int) -> None:
    """The runner chose the number itself, so the worker may have given it to something else."""
    journal = started(1)
    journal.accept_drain("The runner stops.")
    assert (journal.build_number, journal.transition, journal.phase) == (2, "stop", Phase.ACCEPTED)
    assert not journal.is_superseded(request(kind, build_number))


@pytest.mark.parametrize(("kind", "build_number"), [("stop", 2), ("stop", 1), ("delete", 1)])
def test_a_drain_answers_a_stop_with_its_number(kind: str, build_number: int) -> None:
    """What was paused meanwhile is stopped already; older requests count no more."""
    journal = started(1)
    journal.accept_drain("The runner stops.")
    assert journal.is_superseded(request(kind, build_number))


@pytest.mark.parametrize("kind", ["start", "stop", "delete"])
def test_a_requested_build_is_not_replaced(kind: str) -> None:
    """A build that the worker numbered supersedes every request with its number."""
    journal = started(2)
    assert journal.is_superseded(request(kind, 2))
    assert not journal.is_superseded(request(kind, 3))


def test_a_later_build_ends_a_drain() -> None:
    """After the next start the drain is not reported again; the reason is part of the journal on disk."""
    journal = started(1)
    journal.accept_drain("The runner stops.")
    assert Journal.model_validate_json(journal.model_dump_json()).restart_reason == "The runner stops."
    journal.accept(request("start", 3))
    assert journal.restart_reason is None
