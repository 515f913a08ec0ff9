"""What a worker keeps of the directory, and when it reads it again; without a database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from taskherd.domain.directory import OTHER, TemplatePool
from taskherd.messages.run_policy import default_policy
from taskherd.store import directory
from taskherd.store.directory import VersionRun
from taskherd.worker import directory_cache as module
from taskherd.worker.directory_cache import DirectoryCache

ONE, TWO, THREE, FOUR = (UUID(int=number) for number in range(1, 5))
OWN, FROM_POOL = "own", "from the pool"
POOL = TemplatePool("claude", "gpu")
Pair = tuple[UUID, UUID]


class Directory:
    """A directory that has everything but what is ``missing``, and notes what is read of it."""

    def __init__(self) -> None:
        self.reads: list[tuple[str, str, list[Any]]] = []
        self.missing: set[UUID] = set()
        self.stalled_after: dict[UUID, int] = {}
        self.before_names: Callable[[], None] = lambda: None
        self.before_runs: Callable[[], None] = lambda: None
        engine: Any = "engine"
        self.cache: Any = DirectoryCache(engine, default_policy(60))

    async def names(self, connection: str, pairs: Sequence[Pair]) -> dict[Pair, Any]:
        """Return the names of these pairs."""
        self.before_names()
        self.reads.append(("names", connection, list(pairs)))
        return {pair: f"names of {pair[0].int} and {pair[1].int}" for pair in pairs}

    async def owners(self, connection: str, ids: Sequence[UUID]) -> dict[UUID, Any]:
        """Return these users."""
        self.reads.append(("owners", connection, list(ids)))
        return {each: f"user {each.int}" for each in ids if each not in self.missing}

    async def template_versions(self, connection: str, ids: Sequence[UUID]) -> dict[UUID, Any]:
        """Return these versions."""
        self.reads.append(("versions", connection, list(ids)))
        return {each: f"version {each.int}" for each in ids if each not in self.missing}

    async def runs(self, connection: str, versions: Sequence[UUID]) -> dict[UUID, VersionRun]:
        """Return how these versions run."""
        self.before_runs()
        self.reads.append(("runs", connection, list(versions)))
        return {each: VersionRun({"stalled_after": self.stalled_after.get(each)}, POOL) for each in versions}

    async def entries(self, revision: int, owners: set[UUID], versions: set[UUID]) -> tuple[set[Any], set[Any]]:
        """Return the ids of those that exist of these users and versions."""
        found = await self.cache.entries(OWN, revision, owners, versions)
        assert [*found.owners.values()] == [f"user {each.int}" for each in found.owners]
        assert [*found.versions.values()] == [f"version {each.int}" for each in found.versions]
        return set(found.owners), set(found.versions)


@asynccontextmanager
async def _transaction(engine: object) -> AsyncIterator[str]:
    assert engine == "engine"
    yield FROM_POOL


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Directory:
    """Return a directory."""
    source = Directory()
    for name in ("names", "owners", "template_versions", "runs"):
        monkeypatch.setattr(directory, name, getattr(source, name))
    monkeypatch.setattr(module, "transaction", _transaction)
    return source


async def test_names_are_read_once(source: Directory) -> None:
    """Those that are missing, with the connection of the caller, or one from the pool."""
    cache, connection = source.cache, OWN
    assert await cache.look_up([]) == {}
    first = await cache.look_up([(TWO, ONE), (ONE, TWO), (ONE, TWO)], connection)
    assert first == {(ONE, TWO): "names of 1 and 2", (TWO, ONE): "names of 2 and 1"}
    assert await cache.look_up([(ONE, TWO), (THREE, ONE)]) == {
        (ONE, TWO): "names of 1 and 2", (THREE, ONE): "names of 3 and 1"
    }  # fmt: skip
    assert await cache.look_up([(THREE, ONE), (TWO, ONE)]) == {
        (THREE, ONE): "names of 3 and 1", (TWO, ONE): "names of 2 and 1"
    }  # fmt: skip
    assert source.reads == [
        ("names", OWN, [(ONE, TWO), (TWO, ONE)]), ("names", FROM_POOL, [(THREE, ONE)])
    ]  # fmt: skip


async def test_what_was_read_before_the_directory_changed_is_not_kept(source: Directory) -> None:
    """Nor is what was known before; a revision that did not change meanwhile is."""
    cache = source.cache
    cache.replace(7, frozenset({POOL}))
    source.before_names = lambda: cache.replace(8, frozenset({POOL}))
    assert (await cache.look_up([(ONE, TWO)]))[ONE, TWO] == "names of 1 and 2"
    source.before_names = lambda: None
    for _ in range(2):
        await cache.look_up([(ONE, TWO)])
    assert len(source.reads) == 2
    await cache.version_runs(OWN, [ONE])
    cache.replace(9, frozenset())
    assert (cache.revision, cache.template_pools) == (9, frozenset())
    await cache.look_up([(ONE, TWO)])
    await cache.version_runs(OWN, [ONE])
    assert [kind for kind, *_ in source.reads] == ["names", "names", "runs", "names", "runs"]


async def test_a_batch_has_all_its_versions_although_the_directory_changes(source: Directory) -> None:
    """It has those that it knew when it began to read others; what it read then is read again by the next batch."""
    cache = source.cache
    source.stalled_after = {ONE: 600}
    await cache.version_runs(OWN, [ONE])
    source.before_runs = lambda: cache.replace(8, frozenset())
    policies, pools = await cache.version_runs(OWN, [ONE, TWO])
    assert {each: policies[each].stalled_after for each in (ONE, TWO)} == {
        ONE: timedelta(seconds=600), TWO: timedelta(seconds=60)
    }  # fmt: skip
    assert pools == {ONE: POOL, TWO: POOL}
    source.before_runs = lambda: None
    await cache.version_runs(OWN, [TWO])
    assert [read for *_, read in source.reads] == [[ONE], [TWO], [TWO]]


async def test_users_and_versions_are_read_once_for_a_revision(source: Directory) -> None:
    """One that does not exist is read again each time: it may be there by then."""
    source.missing = {THREE}
    assert await source.entries(1, {ONE, TWO}, {FOUR}) == ({ONE, TWO}, {FOUR})
    assert await source.entries(1, {TWO}, {FOUR}) == ({TWO}, {FOUR})
    assert await source.entries(1, {ONE, THREE}, {TWO, FOUR}) == ({ONE}, {TWO, FOUR})
    assert await source.entries(1, {THREE}, {THREE}) == (set(), set())
    assert await source.entries(2, {ONE}, {FOUR}) == ({ONE}, {FOUR})
    assert source.reads == [
        ("owners", OWN, [ONE, TWO]), ("versions", OWN, [FOUR]),
        ("owners", OWN, [THREE]), ("versions", OWN, [TWO]),
        ("owners", OWN, [THREE]), ("versions", OWN, [THREE]),
        ("owners", OWN, [ONE]), ("versions", OWN, [FOUR]),
    ]  # fmt: skip


async def test_recovery_policies_are_read_once(source: Directory) -> None:
    """With the pools of the versions; what a version does not ask for is as by default."""
    cache = source.cache
    source.stalled_after = {TWO: 600}
    policies, pools = await cache.version_runs(OWN, [TWO, ONE, ONE])
    expected = {ONE: timedelta(seconds=60), TWO: timedelta(seconds=600)}
    assert {version: policies[version].stalled_after for version in (ONE, TWO)} == expected
    assert pools == {ONE: POOL, TWO: POOL}
    policies, _ = await cache.version_runs(OWN, [THREE, TWO])
    assert set(policies) >= {TWO, THREE}
    await cache.version_runs(OWN, [ONE, THREE])
    assert source.reads == [("runs", OWN, [ONE, TWO]), ("runs", OWN, [THREE])]


async def test_metrics_name_some_pairs(source: Directory) -> None:
    """All others together."""
    source.cache.replace(1, frozenset({POOL}))
    assert source.cache.metric_label(POOL) == POOL
    assert source.cache.metric_label(TemplatePool("codex", "gpu")) == OTHER


def many(first: int, count: int) -> list[UUID]:
    """Return so many ids."""
    return [UUID(int=number) for number in range(first, first + count)]


async def test_50_000_names_are_kept(source: Directory) -> None:
    """With more than that, all are read again when they are needed."""
    pairs = [(each, ONE) for each in many(1, 50_001)]
    await source.cache.look_up(pairs[:40_000])
    await source.cache.look_up(pairs[40_000:50_000])
    await source.cache.look_up(pairs[:1])
    assert len(source.reads) == 2
    await source.cache.look_up(pairs[50_000:])
    await source.cache.look_up(pairs[:1])
    assert [len(read) for *_, read in source.reads] == [40_000, 10_000, 1, 1]


async def test_50_000_policies_are_kept(source: Directory) -> None:
    """With more than that, all are read again when they are needed; what a batch has read so far it keeps."""
    versions, cache = many(1, 50_001), source.cache
    await cache.version_runs(OWN, versions[:40_000])
    await cache.version_runs(OWN, versions[40_000:50_000])
    _, known = await cache.version_runs(OWN, versions[:1])
    assert len(source.reads) == 2
    policies, _ = await cache.version_runs(OWN, [versions[0], versions[50_000]])
    assert {versions[0], versions[50_000]} <= policies.keys()
    assert set(versions[:50_000]) <= known.keys()
    await cache.version_runs(OWN, versions[:1])
    assert [len(read) for *_, read in source.reads] == [40_000, 10_000, 1, 1]


async def test_50_000_users_and_versions_are_kept(source: Directory) -> None:
    """With more than that, those that are needed are read again by the next creates."""
    ids = many(1, 30_001)
    await source.entries(1, set(ids[:30_000]), set(ids[:20_000]))
    await source.entries(1, {ids[0]}, {ids[0]})
    assert len(source.reads) == 2
    await source.entries(1, {ids[30_000]}, {ids[0]})
    await source.entries(1, {ids[0]}, {ids[0]})
    assert [(kind, len(read)) for kind, _, read in source.reads[2:]] == [("owners", 1), ("owners", 1), ("versions", 1)]
