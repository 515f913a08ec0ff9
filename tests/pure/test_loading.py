"""What a batch locks and reads, by the messages in it; without a database."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from taskherd.backoff import Backoff
from taskherd.domain.claims import BuildClaim, Ownership
from taskherd.domain.commands import Create, Pause, Resume, Send
from taskherd.domain.directory import TemplatePool
from taskherd.domain.handle_command import EarlierInput, TemplateVersionInfo
from taskherd.domain.inbox import QueuedInput
from taskherd.domain.lease import Lease
from taskherd.domain.report_json import canonical_json
from taskherd.domain.reports import InputOutcome, InputOutcomeReport
from taskherd.domain.task import Inbox
from taskherd.domain.updates import TimerCheck
from taskherd.domain.value import replace
from taskherd.messages.claims import OwnershipQuery
from taskherd.messages.run_policy import default_policy
from taskherd.store import build_claims, command_log, command_preconditions, inputs, leases, parked_reports, tasks
from taskherd.store.command_log import RecordedCommand
from taskherd.store.command_preconditions import Preconditions, References
from taskherd.store.directory import Owner, TemplateVersion
from taskherd.store.inputs import InputRow
from taskherd.store.parked_reports import ParkedReport
from taskherd.store.tasks import StoredTask
from taskherd.worker.batch import Batch
from taskherd.worker.directory_cache import NO_ENTRIES, DirectoryEntries, VersionRuns
from taskherd.worker.load import LoadedBatch, load_batch, load_ownership
from tests.harness.contexts import partial_context
from tests.harness.histories import NOON
from tests.harness.tasks import make_task
from tests.pure.domain.mutated_core import unchanged_core
from tests.pure.domain.test_fold import build, disconnected, folded, heartbeat, lifecycle, status, timeouts

CONNECTION: Any = "connection"
POOL = TemplatePool("claude", "gpu")
ONE, TWO, THREE, FOUR, ALICE, BOB, VERSION = (UUID(int=number) for number in (11, 12, 13, 14, 1, 22, 4))
ENTRIES = DirectoryEntries(
    {
        ALICE: Owner(ALICE, "alice", active=True, organizations=frozenset({ONE})),
        BOB: Owner(BOB, "bob", active=False, organizations=frozenset()),
    },
    {VERSION: TemplateVersion(VERSION, TWO, THREE, "v1", {}, usable=True, presets={})},
)


class Store:
    """A database with these tasks; each statement is noted with what it was given."""

    def __init__(self, *task_ids: UUID) -> None:
        self.tasks = {each: make_task(each, state=folded(unchanged_core(), [build()])) for each in task_ids}
        self.appearing: dict[UUID, Any] = {}
        """The tasks that are created by others while ids are locked."""
        self.run: list[tuple[Any, ...]] = []
        self.leases: list[Lease] = []
        self.inputs: list[InputRow] = []
        self.queues: dict[UUID, list[QueuedInput]] = {}
        self.parked: list[ParkedReport] = []
        self.recorded: dict[UUID, RecordedCommand] = {}
        self.existing: list[UUID] = []
        self.max_running = 0
        self.strict = False
        self.policies: dict[UUID, Any] = {}
        self.default_policy = default_policy(60)

    async def lock(self, _: object, ids: Sequence[UUID]) -> list[StoredTask]:
        """Lock tasks."""
        self.run.append(("lock", sorted(ids)))
        return [
            StoredTask(self.tasks[each], "active", f"document {each.int}", NOON) for each in ids if each in self.tasks
        ]

    async def lock_ids(self, _: object, ids: Sequence[UUID]) -> None:
        """Lock ids of missing tasks."""
        self.run.append(("lock ids", list(ids)))
        self.tasks.update(self.appearing)

    async def preconditions(self, _: object, references: References, max_counted: int) -> Preconditions:
        """Lock and read what commands depend on."""
        self.run.append(("preconditions", references, max_counted))
        self.tasks.update(self.appearing)
        running = {owner: owner.int for owner in references.counted_owners}
        return Preconditions(9, self.existing, bool(self.parked), list(self.recorded), running, {ALICE: {"taken"}})

    def reading(self, name: str, result: Callable[[], Any]) -> Callable[..., Any]:
        """Return a function that notes what it is given, and returns this."""

        async def read(connection: object, *arguments: Any) -> Any:
            assert connection is CONNECTION
            self.run.append((name, *[list(each) if isinstance(each, set) else each for each in arguments]))
            return result()

        return read

    async def entries(
        self, _: object, revision: int, owners: Collection[UUID], versions: Collection[UUID]
    ) -> DirectoryEntries:
        """Return entries of the directory."""
        self.run.append(("entries", revision, set(owners), set(versions)))
        return ENTRIES

    async def version_runs(self, _: object, versions: Collection[UUID]) -> VersionRuns:
        """Return the policies and pools of versions."""
        self.run.append(("policies", set(versions)))
        return VersionRuns(self.policies, {VERSION: POOL})

    async def load(self, batch: Batch, indexes: Sequence[int] | None = None) -> LoadedBatch:
        """Load a batch, by default with all its reports."""
        self.run.clear()
        context = partial_context(
            directory_cache=self, max_running=self.max_running, strict_send=self.strict,
            timeouts=timeouts(unchanged_core()), delete_backoff=Backoff(1, 2),
            draw_names=lambda text: (text, f"{text}-2"),
        )  # fmt: skip
        indexes = range(len(batch.reports)) if indexes is None else indexes
        return await load_batch(CONNECTION, context, batch, indexes, NOON)

    def statements(self, *names: str) -> list[tuple[Any, ...]]:
        """Return what was run of these."""
        return [each for each in self.run if each[0] in names]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return a database with two tasks."""
    store = Store(ONE, TWO)
    for module, name, function in (
        (tasks, "lock", store.lock),
        (parked_reports, "lock_task_ids", store.lock_ids),
        (command_preconditions, "lock_and_read", store.preconditions),
        (leases, "lock", store.reading("leases", lambda: store.leases)),
        (inputs, "load", store.reading("inputs", lambda: store.inputs)),
        (inputs, "first_queued", store.reading("queues", lambda: store.queues)),
        (parked_reports, "lock", store.reading("parked", lambda: store.parked)),
        (command_log, "find", store.reading("recorded", lambda: store.recorded)),
        (build_claims, "latest", store.reading("claims", lambda: {ONE: BuildClaim(ONE, 1, "r1")})),
    ):
        monkeypatch.setattr(module, name, function)
    return store


def of(report: Any, task_id: UUID) -> Any:
    """Return the report about another task."""
    return replace(report, task_id=task_id)


def command(kind: Any, task_id: UUID, number: int = 50, **fields: Any) -> Any:
    """Return a command of Alice."""
    return kind(command_id=UUID(int=number), task_id=task_id, actor_id=ALICE, **fields)


def create(task_id: UUID, number: int = 50, owner: UUID = ALICE, **fields: Any) -> Any:
    """Return the create of a task."""
    return command(Create, task_id, number, owner_id=owner, template_version_id=VERSION, input=f"do {number}", **fields)


async def test_reports_lock_their_tasks_alone(store: Store) -> None:
    """Once, and nothing else is read for most."""
    loaded = await store.load(
        Batch([of(status(), ONE), of(status(), TWO), of(status(), ONE), of(status(), THREE)]), [0, 2]
    )
    assert store.run == [("lock", [ONE]), ("leases", []), ("policies", {VERSION})]
    assert [*loaded.rows] == [*loaded.updates] == [ONE]
    update = loaded.updates[ONE]
    assert update.before is update.task is store.tasks[ONE]
    assert update.core_document == "document 11"
    assert (loaded.lease_checked, loaded.leased, loaded.claims) == (frozenset(), frozenset(), {})
    assert (loaded.parked, loaded.recorded_replies, loaded.entries) == ({}, {}, NO_ENTRIES)
    assert loaded.template_pools == {VERSION: POOL}
    context = loaded.update_context
    assert (context.timeouts, context.delete_backoff) == (timeouts(unchanged_core()), Backoff(1, 2))
    assert context.default_policy == default_policy(60)
    assert context.policies is store.policies
    assert (context.known_inputs, context.open_inputs) == (frozenset(), frozenset())


async def test_a_task_that_does_not_exist_is_looked_for_again(store: Store) -> None:
    """Once its id is locked: it may have been created meanwhile."""
    batch = Batch([of(status(), FOUR), of(status(), THREE), of(status(), ONE)])
    store.appearing = {THREE: make_task(THREE)}
    loaded = await store.load(batch)
    assert store.run[:3] == [("lock", [ONE, THREE, FOUR]), ("lock ids", [THREE, FOUR]), ("lock", [THREE, FOUR])]
    assert {*loaded.updates} == {ONE, THREE}


@pytest.mark.parametrize("report", [build(), lifecycle(), heartbeat(), disconnected()])
async def test_leases_are_read_for_what_may_change_a_connection(store: Store, report: Any) -> None:
    """And of tasks with commands and timer checks, that exist; what is in a lease is newer than the task."""
    store.leases = [Lease(ONE, 1, None, 7, None, NOON + timedelta(seconds=5))]
    batch = Batch([of(report, ONE), of(status(), TWO)], timer_checks={THREE: TimerCheck(None)})
    loaded = await store.load(batch)
    assert store.statements("leases") == [("leases", [ONE])]
    assert (loaded.lease_checked, loaded.leased) == (frozenset({ONE, THREE}), frozenset({ONE}))
    update = loaded.updates[ONE]
    assert update.task is update.before
    assert update.existing_task.state.last_heartbeat == {1: NOON + timedelta(seconds=5)}
    assert loaded.updates[TWO].task is store.tasks[TWO]
    await store.load(Batch(commands=[command(Pause, TWO)]))
    assert store.statements("leases") == [("leases", [TWO])]


def input_row(input_id: UUID, task_id: UUID, state: Any, decided_at: datetime | None = None) -> InputRow:
    """Return a stored input."""
    return InputRow(input_id, task_id, 0, f"text {input_id.int}", state, NOON, None, decided_at, None, BOB)


async def test_inputs_are_read_that_a_batch_is_about(store: Store) -> None:
    """Which exist, and which of them have no outcome yet; one of another task is not known."""
    outcomes = [
        InputOutcomeReport(task_id=ONE, build_number=1, seq=0, input_id=each, outcome=InputOutcome.FAILED)
        for each in (ALICE, BOB, FOUR)
    ]
    store.inputs = [
        input_row(ALICE, ONE, "sent"), input_row(BOB, ONE, "failed", NOON), input_row(FOUR, TWO, "sent"),
        input_row(THREE, TWO, "sent"),
    ]  # fmt: skip
    loaded = await store.load(Batch(outcomes, timer_checks={TWO: TimerCheck(None, expired_inputs=(THREE,))}))
    assert store.statements("inputs") == [("inputs", [ALICE, THREE, FOUR, BOB])]
    assert loaded.update_context.known_inputs == {(ONE, ALICE), (ONE, BOB), (TWO, THREE)}
    assert loaded.update_context.open_inputs == {(ONE, ALICE), (TWO, THREE)}
    assert store.statements("queues") == []


async def test_queued_inputs_are_read_as_far_as_they_may_be_sent(store: Store) -> None:
    """One more than the batch decides; of tasks without any none are read."""
    state = replace(store.tasks[ONE].state, inbox=Inbox(3))
    store.tasks[ONE] = replace(store.tasks[ONE], state=state)
    store.queues = {ONE: [QueuedInput(FOUR, steers=False)]}
    outcome = InputOutcomeReport(task_id=ONE, build_number=1, seq=0, input_id=ALICE, outcome=InputOutcome.FAILED)
    loaded = await store.load(Batch([outcome, of(status(), TWO)]))
    assert store.statements("queues") == [("queues", {ONE: 2})]
    assert loaded.updates[ONE].queue == store.queues[ONE]
    assert loaded.updates[TWO].queue == ()
    await store.load(Batch([of(status(), ONE)]))
    assert store.statements("queues") == [("queues", {ONE: 1})]


async def test_claims_are_read_with_their_tasks(store: Store) -> None:
    """Of the tasks that are claimed."""
    loaded = await store.load(Batch(claims=[BuildClaim(ONE, 1, "r1")]))
    assert store.statements("claims") == [("claims", [ONE])]
    assert loaded.claims == {ONE: BuildClaim(ONE, 1, "r1")}
    assert {*loaded.updates} == {ONE}


async def test_a_create_reads_what_it_depends_on(store: Store) -> None:
    """Its task is not looked up first; names are drawn for those without one."""
    store.strict = True
    creates = [create(THREE, 50), create(FOUR, 51, BOB, name="Chosen")]
    loaded = await store.load(Batch(commands=creates))
    names = [(ALICE, "do 50"), (ALICE, "do 50-2"), (BOB, "chosen")]
    ids = [UUID(int=50), UUID(int=51)]
    assert store.run == [
        ("preconditions", References([THREE, FOUR], ids, [], names), 2),
        ("leases", []),
        ("entries", 9, {ALICE, BOB}, {VERSION}),
        ("policies", set()),
    ]
    assert (loaded.entries, loaded.updates) == (ENTRIES, {})
    context = loaded.update_context.command_context
    assert context.owners == {ALICE: frozenset({ONE})}
    assert context.versions == {VERSION: TemplateVersionInfo(THREE, TWO, frozenset(), usable=True)}
    assert context.drawn_names == {THREE: ("do 50", "do 50-2")}
    assert (context.names_in_use, context.strict_send, context.earlier_inputs) == ({ALICE: {"taken"}}, True, {})
    assert (context.running, context.max_running) == ({}, 0)


async def test_commands_for_tasks_that_exist_lock_them(store: Store) -> None:
    """And read no entries of the directory; one that does not exist is looked for once more."""
    store.existing, store.appearing = [THREE], {THREE: make_task(THREE)}
    loaded = await store.load(Batch(commands=[command(Pause, ONE), command(Pause, THREE, 51)]))
    assert store.run == [
        ("lock", [ONE, THREE]),
        ("preconditions", References([THREE], [UUID(int=50), UUID(int=51)], [], []), 2),
        ("lock", [THREE]),
        ("leases", [ONE, THREE]) if store.run[3][1][0] == ONE else ("leases", [THREE, ONE]),
        ("policies", {VERSION}),
    ]
    assert {*loaded.updates} == {ONE, THREE}
    assert loaded.entries is NO_ENTRIES


async def test_what_runs_is_counted_for_those_who_start_something(store: Store) -> None:
    """Creates and resumes, up to the maximum and one more for each command; pauses count nothing."""
    store.max_running = 5
    store.tasks[TWO] = replace(store.tasks[TWO], owner_id=BOB)
    loaded = await store.load(Batch(commands=[create(THREE), command(Resume, TWO, 51), command(Pause, ONE, 52)]))
    ((_, references, most),) = store.statements("preconditions")
    assert (references.counted_owners, most) == ([ALICE, BOB], 8)
    context = loaded.update_context.command_context
    assert (context.running, context.max_running) == ({ALICE: 1, BOB: 22}, 5)
    await store.load(Batch(commands=[command(Resume, FOUR, 51), command(Pause, ONE, 52)]))
    ((_, references, most),) = store.statements("preconditions")
    assert (references.counted_owners, most) == ([], 7)


async def test_the_owner_of_a_task_that_appears_is_counted_too(store: Store) -> None:
    """One that was counted before is not counted again."""
    store.max_running = 5
    store.existing = [THREE, FOUR]
    store.appearing = {THREE: make_task(THREE, owner_id=BOB), FOUR: make_task(FOUR)}
    resumes = [command(Resume, THREE, 50), command(Resume, FOUR, 51), command(Resume, ONE, 52)]
    loaded = await store.load(Batch(commands=resumes))
    first, second = store.statements("preconditions")
    assert first[1].counted_owners == [ALICE]
    assert second[1:] == (References([], [], [BOB], []), 8)
    assert loaded.update_context.command_context.running == {ALICE: 1, BOB: 22}
    store.appearing = {THREE: make_task(THREE), FOUR: make_task(FOUR)}
    del store.tasks[THREE], store.tasks[FOUR]
    await store.load(Batch(commands=resumes))
    assert len(store.statements("preconditions")) == 1


async def test_reports_that_were_parked_are_read_with_the_create(store: Store) -> None:
    """In their order, each with its row."""
    reports = [of(status(seq=seq), THREE) for seq in (1, 2)]
    store.parked = [ParkedReport(7 + each.seq, THREE, NOON, canonical_json(each)) for each in reports]
    loaded = await store.load(Batch(commands=[command(Pause, FOUR, 51), create(THREE)]))
    assert store.statements("parked") == [("parked", [THREE])]
    assert loaded.parked == {THREE: [(8, reports[0]), (9, reports[1])]}


async def test_replies_are_read_of_commands_that_were_executed_before(store: Store) -> None:
    """If there are any."""
    store.recorded = {UUID(int=50): RecordedCommand(b"digest", "{}")}
    loaded = await store.load(Batch(commands=[command(Pause, ONE)]))
    assert store.statements("recorded") == [("recorded", [UUID(int=50)])]
    assert loaded.recorded_replies == store.recorded


async def test_a_send_may_be_one_whose_reply_is_gone(store: Store) -> None:
    """Its input has the id of its command, so that it is not appended twice."""
    sent, queued = UUID(int=50), UUID(int=51)
    store.inputs = [input_row(sent, ONE, "sent"), input_row(queued, TWO, "queued")]
    sends = [command(Send, TWO, 51, input="b"), command(Send, ONE, 50, input="a"), command(Pause, THREE, 52)]
    loaded = await store.load(Batch(commands=sends))
    assert store.statements("inputs") == [("inputs", [sent, queued])]
    assert loaded.update_context.command_context.earlier_inputs == {
        sent: EarlierInput(ONE, "text 50", BOB, queued=False),
        queued: EarlierInput(TWO, "text 51", BOB, queued=True),
    }


async def test_whose_tasks_are(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question is answered by itself, from one read of all tasks."""
    states = {each: (task.state, None) for each, task in store.tasks.items()}
    monkeypatch.setattr(tasks, "states", store.reading("states", lambda: states))
    questions = [OwnershipQuery((ONE, TWO), "r1"), OwnershipQuery((ONE, THREE), "r2")]
    assert await load_ownership(CONNECTION, questions) == [
        {ONE: Ownership.OWNED, TWO: Ownership.OWNED}, {ONE: Ownership.ELSEWHERE, THREE: None}
    ]  # fmt: skip
    assert [(name, sorted(ids)) for name, ids in store.run] == [
        ("states", [ONE, TWO, THREE]),
        ("claims", [ONE, TWO, THREE]),
    ]
