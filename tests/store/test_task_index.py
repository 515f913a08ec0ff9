"""The index of the tasks and the totals: exact at any moment, whatever is recorded, applied or rolled back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from dataclasses import replace as with_fields
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID

import orjson
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.domain import builds
from taskherd.domain.value import replace
from taskherd.messages.listing import ListedHealth
from taskherd.store import task_index, task_queries, task_totals, tasks
from taskherd.store.engine import transaction
from taskherd.store.read_pool import ReadPool
from taskherd.store.task_creation import AddedRows, insert_tasks
from taskherd.store.task_index import IndexedTask
from taskherd.store.task_lists import Between, Listed, by_name
from taskherd.store.task_queries import TaskFilter
from tests.harness.tasks import make_task
from tests.store.conftest import NOW, execute_script, waits_for_lock


class KilledError(Exception):
    """A worker is killed before it commits."""


ACME, OTHER = UUID(int=0xA), UUID(int=0xB)
ALICE, BOB, CAROL, DAVE, EVE = (UUID(int=number) for number in (0xA1, 0xB1, 0xC1, 0xD1, 0xE1))
TEMPLATES = {UUID(int=0x11): (ACME, "claude"), UUID(int=0x12): (ACME, "codex"), UUID(int=0x13): (OTHER, "claude")}
MEMBERS = {
    (ALICE, ACME): "member",
    (BOB, ACME): "member",
    (CAROL, ACME): "admin",
    (CAROL, OTHER): "member",
    (DAVE, OTHER): "admin",
    (EVE, OTHER): "member",
}
FORMER = {(EVE, ACME): "member", (BOB, OTHER): "member", (DAVE, ACME): "admin"}
"""Of those who have left an organization: they see none of its tasks, also none of their own."""
STATUSES = ("active", "paused", "error")
STATES = ("working", "idle", "failed", "none")
HEALTHS = (ListedHealth.HEALTHY.value, ListedHealth.LOST.value, ListedHealth.NONE.value)
TERMS = ("runner:rack-1", "runner:rack-2", "label:repo=acme/app", "label:team=blue")
STEPS = 60

DIRECTORY = f"""
INSERT INTO organizations (id, name, display_name) VALUES ('{ACME}', 'acme', ''), ('{OTHER}', 'other', '');
INSERT INTO users (id, username, name, email, avatar_url) VALUES
    {", ".join(f"('{user}', 'user-{user.int:x}', '', '', '')" for user in (ALICE, BOB, CAROL, DAVE, EVE))};
INSERT INTO memberships (user_id, organization_id, role, active) VALUES
    {", ".join(f"('{user}', '{of}', '{role}', true)" for (user, of), role in MEMBERS.items())},
    {", ".join(f"('{user}', '{of}', '{role}', false)" for (user, of), role in FORMER.items())};
INSERT INTO templates (id, organization_id, name, display_name, icon, active_version_id) VALUES
    {", ".join(f"('{key}', '{of}', '{name}', '', '', '{key}')" for key, (of, name) in TEMPLATES.items())};
"""


@pytest.fixture
async def reader(database_url: str, engine: AsyncEngine) -> AsyncIterator[ReadPool]:
    """Yield a pool for readers, with a directory of two organizations."""
    await execute_script(engine, DIRECTORY)
    pool = ReadPool(database_url, size=2, application_name="taskherd-tests")
    yield pool
    await pool.close()


@dataclass
class Fleet:
    """The tasks that should exist, by id, and random changes of them."""

    random: Random
    listed: dict[UUID, IndexedTask] = field(default_factory=dict)
    rows: dict[UUID, tasks.StoredTask] = field(default_factory=dict)
    made: int = 0

    def new(self) -> IndexedTask:
        """Return a new task, younger than all others."""
        self.made += 1
        template = self.random.choice(list(TEMPLATES))
        organization = TEMPLATES[template][0]
        owner = self.random.choice([user for user, of in (*MEMBERS, *FORMER) if of == organization])
        at = NOW - timedelta(hours=200) + timedelta(minutes=self.made)
        blank = IndexedTask(
            UUID(int=self.random.getrandbits(128)),
            organization,
            owner,
            template,
            self.random.choice(["default", "gpu"]),
            *("active", "none", ListedHealth.NONE.value),
            waiting=False,
            stalled=False,
            created_at=at,
            changed_at=at,
            terms="[]",
            deleted=False,
        )
        return self.changed(blank)

    def changed(self, task: IndexedTask) -> IndexedTask:
        """Return a task after a change of what lists select it by."""
        return task._replace(
            status=self.random.choice(STATUSES),
            state=self.random.choice(STATES),
            health=self.random.choice(HEALTHS),
            waiting=self.random.random() < 0.2,
            stalled=self.random.random() < 0.2,
            changed_at=task.changed_at + timedelta(hours=self.random.random()),
            terms=orjson.dumps(sorted(self.random.sample(TERMS, self.random.randrange(3)))).decode(),
        )

    async def create(self, connection: AsyncConnection, count: int) -> None:
        """Create tasks."""
        new = [self.new() for _ in range(count)]
        for listed in new:
            self.rows[listed.task_id] = self._row(listed)
        await insert_tasks(connection, [self.rows[each.task_id] for each in new], AddedRows(indexed=new))
        self.listed.update((each.task_id, each) for each in new)

    def _row(self, listed: IndexedTask) -> tasks.StoredTask:
        task = make_task(
            listed.task_id,
            owner_id=listed.owner_id,
            organization_id=listed.organization_id,
            template_id=listed.template_id,
            name=f"{self.random.choice(['fix', 'docs'])}-{len(self.rows)}",
            created_at=listed.created_at,
            updated_at=listed.changed_at,
            state=builds.initial_state(listed.task_id, listed.created_at),
        )
        return tasks.StoredTask(task, listed.status, '{"status":"pending"}', None)

    async def change(self, connection: AsyncConnection, *, delete: bool) -> None:
        """Change or delete some tasks, at random."""
        chosen = sorted(self.random.sample(sorted(self.listed), min(len(self.listed), self.random.randrange(1, 6))))
        changed = [self.changed(self.listed[each])._replace(deleted=delete) for each in chosen]
        await tasks.lock(connection, chosen)
        rows = []
        for listed in changed:
            row = self.rows[listed.task_id]
            deleted_at = NOW if delete else None
            rows.append(row._replace(task=replace(row.task, version=row.task.version + 1, deleted_at=deleted_at)))
        await tasks.save(connection, rows, [], changed)
        self.rows.update((row.task.id, row) for row in rows)
        for listed in changed:
            if delete:
                del self.listed[listed.task_id]
            else:
                self.listed[listed.task_id] = listed


def sees(caller: UUID, task: IndexedTask) -> bool:
    """Return whether a caller may see a task."""
    role = MEMBERS.get((caller, task.organization_id))
    return role == "admin" or (role is not None and task.owner_id == caller)


def matches(task: IndexedTask, name: str, wanted: TaskFilter, prefix: str) -> bool:
    """Return whether a task matches a filter, as its fields say."""
    listed = wanted.listed
    equal = (
        (wanted.owner, task.owner_id),
        (wanted.organization, task.organization_id),
        (listed.template, TEMPLATES[task.template_id][1]),
        (listed.pool, task.pool),
        (listed.status, task.status),
        (listed.state, task.state),
        (listed.waiting, task.waiting),
        (listed.stalled, task.stalled),
        (listed.failed, task.status == "error" or task.state == "failed"),
    )
    between, time = (wanted.changed, task.changed_at) if wanted.by_change else (wanted.created, task.created_at)
    return (
        sees(wanted.caller, task)
        and all(value in {None, own} for value, own in equal)
        and (not listed.health or task.health in listed.health)
        and (not listed.term or listed.term in orjson.loads(task.terms))
        and (between.after is None or time > between.after)
        and (between.before is None or time < between.before)
        and name.startswith(prefix)
    )


def random_filter(random: Random) -> tuple[TaskFilter, str]:
    """Return a filter of up to four conditions, and the beginning of a name."""
    possible: dict[str, Any] = {
        "template": random.choice(["claude", "codex"]),
        "pool": random.choice(["default", "gpu"]),
        "status": random.choice(STATUSES),
        "state": random.choice(STATES),
        "health": tuple(random.sample(HEALTHS, random.randrange(1, 3))),
        "waiting": random.random() < 0.5,
        "stalled": random.random() < 0.5,
        "failed": random.random() < 0.5,
        "term": random.choice(TERMS),
    }
    chosen = random.sample(sorted(possible), random.randrange(4))
    time = NOW - timedelta(hours=random.randrange(190, 201))
    between = random.choice([Between(), Between(after=time), Between(before=time)])
    by_change = random.random() < 0.4
    wanted = TaskFilter(
        caller=random.choice([ALICE, BOB, CAROL, DAVE, EVE]),
        limit=random.choice([2, 5, 1000]),
        owner=random.choice([None, None, ALICE, BOB, CAROL, EVE]),
        organization=random.choice([None, None, ACME, OTHER]),
        listed=Listed(**{name: possible[name] for name in chosen}),
        created=Between() if by_change else between,
        changed=between if by_change else Between(),
        by_change=by_change,
        oldest_first=by_change and random.random() < 0.5,
    )
    return wanted, random.choice(["", "", "fix", "docs-1"])


async def check_list(reader: ReadPool, fleet: Fleet) -> None:
    """Read a random list page by page, and compare it with what a look at all tasks finds."""
    wanted, prefix = random_filter(fleet.random)
    if prefix:
        named = await by_name(reader, wanted.caller, prefix, wanted.owner, wanted.organization)
        wanted = with_fields(wanted, ids=[task_id for _, task_id in named])
    matching = [
        task for task in fleet.listed.values() if matches(task, fleet.rows[task.task_id].task.name, wanted, prefix)
    ]
    time = "changed_at" if wanted.by_change else "created_at"
    expected = sorted(((getattr(task, time), task.task_id) for task in matching), reverse=not wanted.oldest_first)
    found: list[UUID] = []
    while True:
        page = list(await task_queries.task_ids(reader, wanted))
        found += page[: wanted.limit]
        if len(page) <= wanted.limit:
            break
        last = page[wanted.limit - 1]
        wanted = with_fields(wanted, after=(getattr(fleet.listed[last], time), last))
    assert found == [task_id for _, task_id in expected], (wanted, prefix)


async def check_totals(reader: ReadPool, fleet: Fleet) -> None:
    """Compare random totals with a count of all tasks."""
    wanted, _ = random_filter(fleet.random)
    listed = with_fields(wanted.listed, term="")
    plain = with_fields(wanted, listed=listed, created=Between(), changed=Between())
    expected = Counter(
        (task.status, task.state, task.health, task.waiting, task.stalled)
        for task in fleet.listed.values()
        if matches(task, "", plain, "")
    )
    rows = await task_totals.totals(reader, plain.caller, listed, owner=plain.owner, organization=plain.organization)
    found = {(row["status"], row["state"], row["health"], row["waiting"], row["stalled"]): row["tasks"] for row in rows}
    assert found == expected, plain


async def stored_totals(engine: AsyncEngine) -> dict[tuple[object, ...], int]:
    """Return the totals of owners that are not 0, as they are stored."""
    columns = ", ".join(("organization_id", "owner_id", *task_index.LISTED))
    async with transaction(engine) as connection:
        rows = await connection.execute(text(f"SELECT {columns}, tasks FROM task_totals WHERE tasks <> 0"))
        return {tuple(row[:-1]): row[-1] for row in rows}


async def counted(engine: AsyncEngine) -> dict[tuple[object, ...], int]:
    """Count the index, for each owner and for all owners together."""
    columns = ", ".join(task_index.LISTED)
    counts: dict[tuple[object, ...], int] = {}
    async with transaction(engine) as connection:
        for owner in ("owner_id", task_index.ALL_OWNERS):
            rows = await connection.execute(
                text(
                    f"SELECT organization_id, {owner} AS owner_id, {columns}, count(*) FROM task_index"
                    f" WHERE term = '' GROUP BY organization_id, {owner if owner == 'owner_id' else 'term'}, {columns}"
                )
            )
            counts |= {tuple(row[:-1]): row[-1] for row in rows}
    return counts


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_lists_and_totals_are_exact_at_any_moment(engine: AsyncEngine, reader: ReadPool, seed: int) -> None:
    """After random creates, changes, deletes, rollbacks and partly applied changes, they are what a look finds."""
    fleet = Fleet(Random(seed))
    for _ in range(STEPS):
        step = fleet.random.random()
        if step < 0.35 or not fleet.listed:
            async with transaction(engine) as connection:
                await fleet.create(connection, fleet.random.randrange(1, 8))
        elif step < 0.75:
            async with transaction(engine) as connection:
                await fleet.change(connection, delete=step < 0.42)
        else:
            limit = fleet.random.randrange(1, 12)
            with suppress(KilledError):
                async with transaction(engine) as connection:
                    await task_index.apply(connection, limit)
                    raise KilledError
            async with transaction(engine) as connection:
                await task_index.apply(connection, limit)
        for _ in range(6):
            await check_list(reader, fleet)
        await check_totals(reader, fleet)
    while True:
        async with transaction(engine) as connection:
            if not await task_index.apply(connection, 10):
                break
    assert await stored_totals(engine) == await counted(engine)
    for _ in range(60):
        await check_list(reader, fleet)
        await check_totals(reader, fleet)
    async with transaction(engine) as connection:
        await task_index.prune(connection)
        least = (await connection.execute(text("SELECT min(tasks) FROM task_totals"))).scalar_one()
    assert least > 0


async def test_a_task_that_changes_while_its_changes_are_applied_is_not_forgotten(
    engine: AsyncEngine, reader: ReadPool
) -> None:
    """A transaction that changes the task waits for the one that applies, and its change is recorded after that."""
    fleet = Fleet(Random(7))
    async with transaction(engine) as connection:
        await fleet.create(connection, 1)

    async def change() -> None:
        async with transaction(engine) as second:
            await fleet.change(second, delete=False)

    async with transaction(engine) as connection:
        assert len(await task_index.apply(connection, 10)) == 1
        waiting = asyncio.create_task(change())
        assert await waits_for_lock(engine, waiting)
    await waiting
    for _ in range(20):
        await check_list(reader, fleet)
        await check_totals(reader, fleet)
    async with transaction(engine) as connection:
        assert len(await task_index.apply(connection, 10)) == 1
    assert await stored_totals(engine) == await counted(engine)


async def test_only_one_transaction_applies_changes(engine: AsyncEngine, reader: ReadPool) -> None:
    """A second worker that sweeps at the same time does nothing, and waits for nobody."""
    fleet = Fleet(Random(8))
    async with transaction(engine) as connection:
        await fleet.create(connection, 2)
    async with transaction(engine) as first:
        assert len(await task_index.apply(first, 1)) == 1
        async with transaction(engine) as second:
            assert await task_index.apply(second, 10) == []
    await check_totals(reader, fleet)


async def test_changes_are_applied_in_the_order_of_the_tasks(engine: AsyncEngine, reader: ReadPool) -> None:
    """Each transaction takes those after the last one of the transaction before, and only so many."""
    fleet = Fleet(Random(9))
    async with transaction(engine) as connection:
        await fleet.create(connection, 7)
        ids = list((await connection.execute(text("SELECT task_id FROM task_index_changes ORDER BY 1"))).scalars())
    after, applied = task_index.FIRST, []
    for expected in (3, 3, 1, 0):
        async with transaction(engine) as connection:
            applied += (taken := await task_index.apply(connection, 3, after))
        assert len(taken) == expected
        after = applied[-1]
        await check_totals(reader, fleet)
    assert applied == ids


async def test_readers_of_an_index_that_is_far_behind_find_the_tasks_as_indexed(
    engine: AsyncEngine, reader: ReadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If more changes wait than readers can look at, lists and totals are those of before, without deleted tasks."""
    fleet = Fleet(Random(10))
    async with transaction(engine) as connection:
        await fleet.create(connection, 9)
    async with transaction(engine) as connection:
        assert len(await task_index.apply(connection, 10)) == 9
    indexed = dict(fleet.listed)
    async with transaction(engine) as connection:
        await fleet.change(connection, delete=True)
    async with transaction(engine) as connection:
        await fleet.change(connection, delete=False)
        await fleet.create(connection, 2)
    deleted = indexed.keys() - fleet.listed.keys()
    waiting = await pending(engine)
    assert len(deleted) > 0
    assert waiting > len(deleted) + 2
    now = dict(fleet.listed)
    for limit in (waiting, waiting - 1):
        monkeypatch.setattr(task_index, "MAX_CORRECTED", limit)
        is_behind = limit < waiting
        fleet.listed = {key: row for key, row in indexed.items() if key not in deleted} if is_behind else now
        for _ in range(40):
            await check_indexed_list(reader, fleet)
        fleet.listed = indexed if is_behind else now
        for _ in range(20):
            await check_totals(reader, fleet)


async def test_who_needs_the_tasks_as_they_are_is_told_that_the_index_is_behind(
    engine: AsyncEngine, reader: ReadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if no task matches by the index. What is not selected by the index is found all the same."""
    fleet = Fleet(Random(11))
    async with transaction(engine) as connection:
        await fleet.create(connection, 30)
    async with transaction(engine) as connection:
        await task_index.apply(connection, 10)
    waiting = await pending(engine)
    for is_behind in (False, True):
        monkeypatch.setattr(task_index, "MAX_CORRECTED", waiting - is_behind)
        for _ in range(40):
            wanted, _ = random_filter(fleet.random)
            wanted = with_fields(wanted, limit=fleet.random.choice([0, 2, 1000]))
            exact = await task_queries.current_task_ids(reader, wanted)
            if is_behind and wanted.indexed is not None:
                assert exact is None, wanted
            else:
                assert exact == await task_queries.task_ids(reader, wanted), wanted


async def pending(engine: AsyncEngine) -> int:
    """Return the number of recorded changes."""
    async with transaction(engine) as connection:
        return int((await connection.execute(text("SELECT count(*) FROM task_index_changes"))).scalar_one())


async def check_indexed_list(reader: ReadPool, fleet: Fleet) -> None:
    """Compare a random list that the index serves, whole, with what a look at the tasks finds."""
    wanted, _ = random_filter(fleet.random)
    wanted = with_fields(wanted, by_change=True, created=Between(), limit=1000)
    matching = [task for task in fleet.listed.values() if matches(task, "", wanted, "")]
    expected = sorted(((task.changed_at, task.task_id) for task in matching), reverse=not wanted.oldest_first)
    assert list(await task_queries.task_ids(reader, wanted)) == [task_id for _, task_id in expected], wanted


async def test_changes_of_tasks_that_are_being_saved_are_left_for_later(engine: AsyncEngine, reader: ReadPool) -> None:
    """Who applies changes waits for no transaction that saves a task."""
    fleet = Fleet(Random(10))
    async with transaction(engine) as connection:
        await fleet.create(connection, 3)
        ids = list((await connection.execute(text("SELECT task_id FROM task_index_changes ORDER BY 1"))).scalars())
    async with transaction(engine) as saving:
        lock = text("SELECT FROM task_index_changes WHERE task_id = :id FOR UPDATE")
        await saving.execute(lock, {"id": ids[1]})
        async with asyncio.timeout(30), transaction(engine) as connection:
            assert await task_index.apply(connection, 10) == [ids[0], ids[2]]
    async with transaction(engine) as connection:
        assert await task_index.apply(connection, 10) == [ids[1]]
    await check_totals(reader, fleet)
