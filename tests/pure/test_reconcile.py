"""What reconcile decides between load and save, without a database."""

from __future__ import annotations

from collections import defaultdict
from uuid import UUID, uuid4

from taskherd.backoff import Backoff
from taskherd.domain.command_results import CommandAccepted
from taskherd.domain.commands import Create
from taskherd.domain.handle_command import CommandContext, TemplateVersionInfo
from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.reports import AgentState, AppStatus, JobStatus, Transition
from taskherd.domain.updates import UpdateContext
from taskherd.domain.value import replace
from taskherd.messages.run_policy import default_policy
from taskherd.store.command_log import RecordedCommand
from taskherd.worker.batch import Batch, BatchResult
from taskherd.worker.load import LoadedBatch
from taskherd.worker.reconcile import fold_batch, summarize
from taskherd.worker.save import Writes
from tests.harness.histories import NOON, TASK
from tests.pure.domain.mutated_core import unchanged_core
from tests.pure.domain.test_fold import build, status, timeouts
from tests.pure.domain.test_task_update import new_update

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


def loaded(batch: Batch, recorded_reply: RecordedCommand | None = None, *, owner: UUID = ACTOR) -> LoadedBatch:
    """Return a loaded batch without its task and with two parked reports, the first in conflict with any create."""
    version = TemplateVersionInfo(ORGANIZATION, uuid4(), frozenset(), usable=True)
    command_context = CommandContext(
        {owner: frozenset({ORGANIZATION})}, {VERSION: version}, {}, defaultdict(lambda: ("name",))
    )
    conflict = build(seq=9, transition=Transition.DELETE, job=JobStatus.SUCCEEDED)
    return LoadedBatch(
        batch=batch,
        rows={},
        updates={},
        update_context=UpdateContext(timeouts(unchanged_core()), Backoff(1, 1), command_context, default_policy(1800)),
        lease_checked=frozenset({TASK}),
        leased=frozenset(),
        parked={TASK: [(5, conflict), (6, status(AgentState.WORKING))]},
        recorded_replies={CREATE.command_id: recorded_reply} if recorded_reply else {},
        claims={},
        template_pools={},
    )


def result(batch: Batch) -> BatchResult:
    """Return the empty result of a batch."""
    return BatchResult(NOON, [ReportOutcome.UNCHANGED] * len(batch.reports))


def test_a_create_folds_its_parked_reports_except_a_conflict() -> None:
    """The conflicting report stays parked; the other one is part of the created task."""
    batch = Batch(commands=[CREATE])
    loaded_batch, batch_result = loaded(batch), result(batch)
    assert fold_batch(loaded_batch, [], batch_result).folded == [6]
    task = loaded_batch.updates[TASK].existing_task
    assert task.state.app_status
    assert task.state.build.report.transition is Transition.START


def test_a_refused_or_repeated_create_folds_no_parked_report() -> None:
    """Only the create that is executed folds the reports that were parked for it."""
    batch = Batch(commands=[CREATE])
    assert fold_batch(loaded(batch, owner=OTHER), [], result(batch)).folded == []
    assert fold_batch(loaded(batch, RecordedCommand(b"", "{}")), [], result(batch)).folded == []


def test_creates_of_one_batch_cannot_take_the_same_name() -> None:
    """The second create with a name is refused, also in another case; generated names avoid those of the batch."""
    owners = {ACTOR: "Fix-It", OTHER: "fix-it"}
    creates = [
        replace(CREATE, command_id=uuid4(), task_id=uuid4(), owner_id=owner, name=name)
        for owner, name in ((ACTOR, owners[ACTOR]), (ACTOR, "FIX-it"), (OTHER, owners[OTHER]), (ACTOR, None))
    ]
    batch = Batch(commands=creates)
    loaded_batch = loaded(batch)
    organizations = frozenset({ORGANIZATION})
    versions = loaded_batch.update_context.command_context.versions
    drawn = {creates[3].task_id: ("fix-it", "generated")}
    context = CommandContext({ACTOR: organizations, OTHER: organizations}, versions, {}, drawn)
    loaded_batch.update_context = replace(loaded_batch.update_context, command_context=context)
    fold_batch(loaded_batch, [], result(batch))
    results = [loaded_batch.updates[create.task_id].command_result for create in creates]
    assert [isinstance(each, CommandAccepted) for each in results] == [True, False, True, True]
    assert context.names_in_use == {ACTOR: {"fix-it", "generated"}, OTHER: {"fix-it"}}


def test_a_report_without_a_task_is_parked_under_its_index() -> None:
    """The other reports are folded, and count as unchanged if no document changed. No task is created."""
    missing = AppStatus(task_id=OTHER, build_number=None, seq=1, state=AgentState.IDLE)
    batch = Batch([status(AgentState.IDLE), missing])
    loaded_batch, batch_result = loaded(batch), result(batch)
    loaded_batch.updates[TASK] = new_update(unchanged_core().builds.initial_state(TASK, NOON))
    parking = fold_batch(loaded_batch, [0, 1], batch_result)
    assert parking.new == {1: missing}
    assert batch_result.outcomes == [ReportOutcome.APPLIED, ReportOutcome.PARKED]
    assert set(loaded_batch.updates) == {TASK}
    summarize(loaded_batch, [0, 1], Writes(), batch_result)
    assert batch_result.outcomes == [ReportOutcome.UNCHANGED, ReportOutcome.PARKED]
