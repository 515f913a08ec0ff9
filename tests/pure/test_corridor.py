"""The corridor's decisions between load and save, without a database."""

from __future__ import annotations

from uuid import UUID, uuid4

from taskherd.backoff import Backoff
from taskherd.domain.commands import Create
from taskherd.domain.handle_command import CreateContext, TemplateVersionInfo
from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.reports import AgentState, AppStatus, JobStatus, Transition
from taskherd.domain.task_update import Policies
from taskherd.store.commands import RecordedCommand
from taskherd.worker.batch import Batch, BatchResult
from taskherd.worker.load import LoadedBatch
from taskherd.worker.reconcile import fold_batch, summarize
from taskherd.worker.save import Writes
from tests.harness.histories import NOON, TASK
from tests.pure.domain.mutated_core import whole
from tests.pure.domain.test_fold import build, patience, status
from tests.pure.domain.test_task_update import updated

ACTOR, ORGANIZATION, VERSION = UUID(int=7), UUID(int=8), UUID(int=9)
CREATE = Create(
    command_id=uuid4(),
    task_id=TASK,
    actor_id=ACTOR,
    owner_id=ACTOR,
    template_version_id=VERSION,
    input="Do it",
)
OTHER = UUID(int=10)


def loaded(batch: Batch, replied: RecordedCommand | None = None, *, owner: UUID = ACTOR) -> LoadedBatch:
    """A batch for which no task was found, with two parked reports, the first of which no create can take."""
    version = TemplateVersionInfo(ORGANIZATION, uuid4(), frozenset(), usable=True)
    around = CreateContext({owner: frozenset({ORGANIZATION})}, {VERSION: version}, {}, lambda _prompt, _taken: "name")
    wrong = build(seq=9, transition=Transition.DELETE, job=JobStatus.SUCCEEDED)
    return LoadedBatch(
        batch=batch,
        rows={},
        updates={},
        policies=Policies(patience(whole()), Backoff(1, 1), around),
        lease_checked=frozenset({TASK}),
        leased=frozenset(),
        parked=[(5, wrong), (6, status(AgentState.WORKING))],
        recorded_reply=replied,
    )


def result(batch: Batch) -> BatchResult:
    """A result to which nothing was added yet."""
    return BatchResult(NOON, [ReportOutcome.UNCHANGED] * len(batch.reports))


def test_a_create_takes_what_was_parked_except_what_it_refuses() -> None:
    """The parked report that conflicts stays parked, and the other one is part of the created task."""
    batch = Batch(command=CREATE)
    scene, after = loaded(batch), result(batch)
    assert fold_batch(scene, [], after).folded == [6]
    task = scene.updates[TASK].existing_task
    assert task.state.app_status
    assert task.state.build.report.transition is Transition.START


def test_what_was_parked_stays_without_a_create() -> None:
    """Neither a refused create nor a repeated one takes anything."""
    batch = Batch(command=CREATE)
    assert fold_batch(loaded(batch, owner=OTHER), [], result(batch)).folded == []
    assert fold_batch(loaded(batch, RecordedCommand(b"", "{}")), [], result(batch)).folded == []


def test_a_report_without_a_task_is_parked_under_its_index() -> None:
    """The others of the batch are folded, and are unchanged where no document changed; no task is made up."""
    missing = AppStatus(task_id=OTHER, build_number=None, seq=1, state=AgentState.IDLE)
    batch = Batch([status(AgentState.IDLE), missing])
    scene, after = loaded(batch), result(batch)
    scene.updates[TASK] = updated(whole().builds.initial_state(TASK, NOON))
    parking = fold_batch(scene, [0, 1], after)
    assert parking.new == {1: missing}
    assert after.outcomes == [ReportOutcome.APPLIED, ReportOutcome.PARKED]
    assert set(scene.updates) == {TASK}
    summarize(scene, [0, 1], Writes(), after)
    assert after.outcomes == [ReportOutcome.UNCHANGED, ReportOutcome.PARKED]
