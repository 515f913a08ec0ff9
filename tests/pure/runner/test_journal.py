from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from taskherd.messages.work import WorkRequestOwner, WorkspaceDelete, WorkspaceStart, WorkspaceStop
from taskherd.runner import journal as journals
from taskherd.runner.journal import AcceptedInterrupt, InputDelivery, Journal, Phase

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


def test_a_journal_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """A part of an earlier one that could not be written is written over, and nothing is left beside it."""
    path = tmp_path / "journal.json"
    path.with_suffix(".new").write_bytes(b"a part of an earlier one that is longer" * 100)
    for number in (1, 2):
        journals.write(path, started(number).model_dump_json().encode())
        loaded = journals.load(path)
        assert loaded is not None
        assert loaded.build_number == number
        assert list(tmp_path.iterdir()) == [path]


def test_only_its_user_may_read_a_journal(tmp_path: Path) -> None:
    """It contains the agent's token."""
    path = tmp_path / "journal.json"
    journals.write(path, b"{}")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"task_id": 7, "task_name": "a"}'])
def test_what_is_no_journal_is_none(tmp_path: Path, content: bytes | None) -> None:
    """A folder without a readable journal is left alone."""
    path = tmp_path / "journal.json"
    if content is not None:
        path.write_bytes(content)
    assert journals.load(path) is None


def test_a_start_begins_anew() -> None:
    """What was recorded of the agent before, and of its prompt, does not count for the next one."""
    journal = started(1)
    journal.port, journal.exit_reported, journal.ready_reported = 4567, True, True
    journal.interrupted, journal.ended_because, journal.restart_reason = True, "It stalled.", "Drained."
    prompt_id = journal.prompt_id
    assert prompt_id == uuid.uuid5(TASK, "prompt")
    other = uuid.uuid4()
    journal.inputs = {prompt_id: InputDelivery.DELIVERED, other: InputDelivery.DELIVERED}
    journal.accept(request("start", 2))
    assert (journal.transition, journal.build_number, journal.phase) == ("start", 2, Phase.ACCEPTED)
    after = journal.model_dump()
    assert [after[name] for name in ("port", "ended_because", "restart_reason")] == [None, None, None]
    assert [after[name] for name in ("exit_reported", "ready_reported", "interrupted")] == [False, False, False]
    assert journal.inputs == {other: InputDelivery.DELIVERED}


def test_a_workspace_is_up_after_a_start_that_is_done() -> None:
    """Not while the start is carried out, nor after a stop."""
    for phase in Phase:
        journal = started(1)
        journal.phase = phase
        assert journal.workspace_is_up is (phase is Phase.DONE)
    journal = started(1)
    journal.accept(request("stop", 2))
    journal.phase = Phase.DONE
    assert journal.workspace_is_up is False
    assert (journal.transition, journal.start is not None) == ("stop", True)
    journal.accept(request("delete", 3))
    assert (journal.transition, journal.build_number) == ("delete", 3)


def test_a_request_without_the_tasks_name_keeps_it() -> None:
    """A runner whose template has moved to another pool is asked to stop without it, and reports it as before."""
    journal = started(1)
    journal.accept(request("stop", 2).model_copy(update={"task_name": ""}))
    assert journal.task_name == "a"
    journal.accept(request("start", 3).model_copy(update={"task_name": "b"}))
    assert journal.task_name == "b"


def test_the_latest_500_inputs_and_50_interrupts_are_recorded() -> None:
    """Older ones are not repeated by the worker; a later outcome does not make an input a new one."""
    journal = started(1)
    ids = [uuid.UUID(int=number) for number in range(501)]
    for input_id in ids[:500]:
        journal.record_input(input_id, InputDelivery.DELIVERING)
    journal.record_input(ids[1], InputDelivery.DELIVERED)
    assert [*journal.inputs] == ids[:500]
    journal.record_input(ids[500], InputDelivery.FAILED)
    assert [*journal.inputs] == ids[1:]
    assert journal.inputs[ids[1]] is InputDelivery.DELIVERED
    for interrupt_id in ids[:50]:
        journal.interrupt = AcceptedInterrupt(interrupt_id=interrupt_id, build_number=1, at_work=True)
        journal.record_interrupt(interrupt_id)
        assert journal.interrupt is None
    assert journal.ended_interrupts == ids[:50]
    journal.record_interrupt(ids[50])
    assert journal.ended_interrupts == ids[1:51]


def test_the_prompt_stays_recorded_however_many_inputs_follow() -> None:
    """A later runner would give it again."""
    journal = started(1)
    assert journal.prompt_id is not None
    journal.record_input(journal.prompt_id, InputDelivery.DELIVERED)
    for number in range(501):
        journal.record_input(uuid.UUID(int=number), InputDelivery.DELIVERED)
    assert journal.inputs[journal.prompt_id] is InputDelivery.DELIVERED
    assert list(journal.inputs)[1:] == [uuid.UUID(int=number) for number in range(2, 501)]


def test_the_prompt_that_an_agent_was_given_is_recognized() -> None:
    """By its digest, whatever it contains; a task that was never started has none."""
    journal = Journal(task_id=TASK, task_name="a")
    journal.record_prompt()
    assert (journal.prompt_id, journal.given_prompt) == (None, "")
    journal = started(1)
    assert not journal.was_given("Do it")
    journal.record_prompt()
    assert journal.was_given("Do it")
    assert not journal.was_given("Do it!")
    assert not journal.was_given("\ud800")
