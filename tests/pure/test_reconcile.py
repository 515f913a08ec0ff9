"""What reconcile decides between load and save, without a database."""

from __future__ import annotations

import asyncio
import gc
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from taskherd.backoff import Backoff
from taskherd.domain.claims import BuildClaim, ClaimOutcome
from taskherd.domain.command_results import CommandAccepted
from taskherd.domain.commands import Create
from taskherd.domain.directory import OTHER as OTHER_POOL
from taskherd.domain.directory import TemplatePool
from taskherd.domain.handle_command import CommandContext, TemplateVersionInfo
from taskherd.domain.lease import HeartbeatSummary
from taskherd.domain.outcome import DeadLetterReason, ReportOutcome
from taskherd.domain.reports import AgentState, AppStatus, JobStatus, Transition
from taskherd.domain.updates import TaskUpdate, TimerCheck, UpdateContext
from taskherd.domain.usage import UsageAmounts, UsageKey, UsageLedger
from taskherd.domain.value import replace
from taskherd.errors import Unavailable
from taskherd.messages.events import EventKind
from taskherd.messages.run_policy import default_policy
from taskherd.store import leases
from taskherd.store.command_log import RecordedCommand
from taskherd.worker import reconcile as reconcile_module
from taskherd.worker.batch import Batch, BatchResult, CommittedChange
from taskherd.worker.context import WorkerContext
from taskherd.worker.load import LoadedBatch
from taskherd.worker.reconcile import fold_batch, split_heartbeats, summarize
from taskherd.worker.save import Writes
from taskherd.worker.sender_pools import Pools
from tests.harness.contexts import partial_context
from tests.harness.histories import NOON, TASK
from tests.harness.tasks import make_task
from tests.pure.domain.mutated_core import unchanged_core
from tests.pure.domain.test_fold import build, disconnected, heartbeat, lifecycle, status, timeouts
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
        leases={},
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


def split(
    reports: list[Any], checks: tuple[UUID, ...] = (), pools: Sequence[Pools] = ()
) -> tuple[dict[UUID, Any], Any]:
    """Return the indexes of the heartbeats that may only renew a lease, by task, and those of all other reports."""
    batch = Batch(reports, timer_checks={each: TimerCheck(None) for each in checks}, report_pools=pools)
    heartbeats, others = split_heartbeats(batch)
    return dict(heartbeats), others


def beat(task_id: UUID = TASK) -> Any:
    """Return a heartbeat of a task."""
    return replace(heartbeat(), task_id=task_id)


def test_heartbeats_that_only_renew_leases_are_taken_apart() -> None:
    """Not those of a task of which something else may change the connection, nor of senders of some pools only."""
    assert split([]) == ({}, [])
    assert split([beat(), status(), beat(OTHER), beat()]) == ({TASK: [0, 3], OTHER: [2]}, [1])
    for changing in (lifecycle(), build(), disconnected()):
        assert split([beat(), beat(OTHER), changing, beat()]) == ({OTHER: [1]}, [0, 2, 3])
    assert split([beat(), beat(OTHER), status()], checks=(OTHER,)) == ({TASK: [0]}, [1, 2])
    assert split([beat(), beat(OTHER), beat()], pools=[None, frozenset({"gpu"}), None]) == ({TASK: [0, 2]}, [1])


class Transactions:
    """The transactions of a batch: each has the reports that it is about, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run: list[tuple[list[int], int]] = []
        self.renewed: set[UUID] = set()
        self.failing: dict[str, Exception] = {}
        self.recorded: list[Any] = []
        monkeypatch.setattr(reconcile_module, "run_transaction", self._run)
        monkeypatch.setattr(reconcile_module, "renew_leases", self._renew)
        for name in ("record", "count_usage"):
            monkeypatch.setattr(reconcile_module, name, lambda _, what: self.recorded.append(what))
        self.context = partial_context(engine="engine", rates=self)

    def count_changes(self, changes: Any, now: datetime) -> None:
        """Note what is counted."""
        assert now == NOON
        self.recorded.append(changes)

    async def _run(self, context: WorkerContext, batch: Batch, indexes: list[int], result: BatchResult) -> None:
        assert context is self.context
        self.run.append((list(indexes), len(batch.commands)))
        result.changes.extend(indexes)  # type: ignore[arg-type]
        if "run" in self.failing:
            raise self.failing["run"]

    async def _renew(self, engine: str, _: Batch, heartbeats: Mapping[UUID, Any], now: datetime) -> set[UUID]:
        assert (engine, now) == ("engine", NOON)
        await asyncio.sleep(0)
        if "renew" in self.failing:
            raise self.failing["renew"]
        return {*heartbeats} & self.renewed


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> Transactions:
    """Return the transactions of a batch."""
    return Transactions(monkeypatch)


async def test_heartbeats_that_renewed_no_lease_follow(transactions: Transactions) -> None:
    """By themselves; the commands are executed once, and what changed is counted at the end."""
    batch = Batch([beat(), status(), beat(OTHER)], commands=[CREATE])
    transactions.renewed = {TASK}
    batch_result = await reconcile_module.reconcile(transactions.context, batch, NOON)
    assert transactions.run == [([1], 1), ([2], 0)]
    assert transactions.recorded == [[], [], [1, 2]]
    assert (batch_result.outcomes, batch_result.now) == ([ReportOutcome.UNCHANGED] * 3, NOON)
    transactions.renewed = {TASK, OTHER}
    transactions.run.clear()
    await reconcile_module.reconcile(transactions.context, batch, NOON)
    assert transactions.run == [([1], 1)]


@pytest.mark.parametrize("both", [False, True])
async def test_a_batch_whose_transaction_fails_fails(transactions: Transactions, *, both: bool) -> None:
    """After the other one has ended, whose error nobody misses; nothing is counted."""
    transactions.failing = {"run": Unavailable("no database")}
    if both:
        transactions.failing["renew"] = Unavailable("no database either")
    with pytest.raises(Unavailable, match=r"^no database$"):
        await reconcile_module.reconcile(transactions.context, Batch([beat(), status()]), NOON)
    gc.collect()  # an error that was never looked at would be told now
    assert transactions.recorded == []
    del transactions.failing["run"]
    transactions.failing["renew"] = Unavailable("no lease")
    with pytest.raises(Unavailable, match="no lease"):
        await reconcile_module.reconcile(transactions.context, Batch([beat(), status()]), NOON)


async def test_a_batch_without_anything_to_do_begins_no_transaction() -> None:
    """As one of heartbeats only; without heartbeats none renews leases."""
    context, batch = partial_context(engine=None), Batch([beat()])
    batch_result = result(batch)
    await reconcile_module.run_transaction(context, batch, [], batch_result)
    engine: Any = None
    assert await reconcile_module.renew_leases(engine, batch, {}, NOON) == set()
    assert batch_result.outcomes == [ReportOutcome.UNCHANGED]


GPU, ARM = frozenset({"gpu"}), frozenset({"arm"})


@pytest.mark.parametrize(
    ("pools", "known", "trusted"),
    [
        (None, True, True), (None, False, True), (GPU, True, True), (ARM, True, False), (GPU, False, False),
    ],
)  # fmt: skip
def test_senders_speak_of_the_tasks_of_their_pools(pools: Pools, *, known: bool, trusted: bool) -> None:
    """What another says is refused, also of a task that does not exist."""
    batch = Batch([status()], claims=[BuildClaim(TASK, 1, "r1")], report_pools=[pools], claim_pools=[pools])
    loaded_batch, batch_result = loaded(batch), result(batch)
    if known:
        update = new_update(unchanged_core().builds.initial_state(TASK, NOON))
        loaded_batch.updates[TASK] = update
        loaded_batch.template_pools = {update.existing_task.template_version_id: TemplatePool("claude", "gpu")}
    fold_batch(loaded_batch, [0], batch_result)
    accepted = ReportOutcome.APPLIED if known else ReportOutcome.PARKED
    assert batch_result.outcomes == [accepted if trusted else ReportOutcome.UNTRUSTED_SENDER]
    (decision,) = batch_result.decisions
    assert (decision is DeadLetterReason.UNTRUSTED_SENDER) is not trusted


def test_a_task_of_an_unknown_template_is_in_nobodys_pool() -> None:
    """Nobody whose pools are checked may speak of it."""
    batch = Batch([status()], report_pools=[GPU])
    loaded_batch, batch_result = loaded(batch), result(batch)
    loaded_batch.updates[TASK] = new_update(unchanged_core().builds.initial_state(TASK, NOON))
    fold_batch(loaded_batch, [0], batch_result)
    assert batch_result.outcomes == [ReportOutcome.UNTRUSTED_SENDER]


def test_the_second_claim_of_a_batch_meets_the_first() -> None:
    """Claims of a task that does not exist are gone."""
    claims = [
        BuildClaim(TASK, 1, "r1"),
        BuildClaim(TASK, 1, "r2"),
        BuildClaim(TASK, 1, "r1"),
        BuildClaim(OTHER, 1, "r1"),
    ]
    batch = Batch(claims=claims)
    loaded_batch, batch_result = loaded(batch), result(batch)
    loaded_batch.updates[TASK] = new_update(unchanged_core().builds.initial_state(TASK, NOON))
    fold_batch(loaded_batch, [], batch_result)
    decisions = [each for each in batch_result.decisions if not isinstance(each, DeadLetterReason)]
    assert [each.outcome for each in decisions] == [
        ClaimOutcome.GRANTED, ClaimOutcome.TAKEN, ClaimOutcome.REPEATED, ClaimOutcome.GONE
    ]  # fmt: skip


def test_timer_checks_and_what_follows_are_applied_last() -> None:
    """To the tasks that exist: one whose time is over has failed."""
    late = NOON + timedelta(hours=1)
    batch = Batch(timer_checks={TASK: TimerCheck(NOON), OTHER: TimerCheck(NOON)})
    loaded_batch = loaded(batch)
    batch_result = BatchResult(late, [])
    update = loaded_batch.updates[TASK] = new_update(unchanged_core().builds.initial_state(TASK, NOON))
    fold_batch(loaded_batch, [], batch_result)
    assert update.timed_out == "start"
    summarize(loaded_batch, [], Writes(), batch_result)
    assert batch_result.given_up == [("workspace.start", OTHER_POOL)]


def test_what_became_of_requests_is_summed_up() -> None:
    """By template and pool; of a task that does not exist nothing did."""
    batch = Batch([status()])
    loaded_batch, batch_result = loaded(batch), result(batch)
    update = new_update(unchanged_core().builds.initial_state(TASK, NOON))
    update.inputs_expired, update.interrupt_expired, update.delete_retried = 2, True, True
    key = UsageKey(1, "opus")
    update.usage = UsageLedger({}, {key: UsageAmounts((1, 0, 0, 0), {})})
    loaded_batch.updates.update({OTHER: TaskUpdate(None, None), TASK: update})
    pool = TemplatePool("claude", "gpu")
    loaded_batch.template_pools = {update.existing_task.template_version_id: pool}
    batch_result.outcomes = [ReportOutcome.STALE]
    summarize(loaded_batch, [0], Writes(), batch_result)
    assert batch_result.given_up == [("agent.input", pool)] * 2 + [("agent.interrupt", pool)]
    assert (batch_result.deletes_retried, batch_result.outcomes) == (1, [ReportOutcome.STALE])
    assert batch_result.new_usage == [(pool, update.usage.new[key])]
    assert not batch_result.has_due_requests


def test_a_report_that_changed_its_task_is_applied() -> None:
    """One of another task in the same batch is not, and what was decided otherwise stays."""
    batch = Batch([status(), replace(status(), task_id=OTHER), status()])
    loaded_batch, batch_result = loaded(batch), result(batch)
    batch_result.outcomes = [ReportOutcome.APPLIED, ReportOutcome.APPLIED, ReportOutcome.STALE]
    change = CommittedChange(make_task(TASK), EventKind.UPDATED, "{}", (), "{}")
    summarize(loaded_batch, [0, 1, 2], Writes(changes=[change]), batch_result)
    assert batch_result.outcomes == [ReportOutcome.APPLIED, ReportOutcome.UNCHANGED, ReportOutcome.STALE]
    assert batch_result.changes == [change]


async def test_leases_are_renewed_by_the_latest_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one statement; the tasks whose leases were renewed are returned."""
    summaries: list[HeartbeatSummary] = []

    @asynccontextmanager
    async def transaction(engine: object) -> AsyncIterator[str]:
        assert engine == "engine"
        yield "connection"

    async def renew(connection: object, latest: Sequence[HeartbeatSummary]) -> set[UUID]:
        assert connection == "connection"
        summaries.extend(latest)
        return {TASK}

    monkeypatch.setattr(reconcile_module, "transaction", transaction)
    monkeypatch.setattr(leases, "renew", renew)
    batch = Batch([heartbeat(seq=3), status(), heartbeat(seq=5), beat(OTHER)])
    engine: Any = "engine"
    assert await reconcile_module.renew_leases(engine, batch, {TASK: [0, 2], OTHER: [3]}, NOON) == {TASK}
    assert [(each.task_id, each.seq, each.last_heartbeat_at) for each in summaries] == [
        (TASK, 5, NOON),
        (OTHER, 0, NOON),
    ]
