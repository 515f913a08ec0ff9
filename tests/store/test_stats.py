"""The counts for the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from uuid import UUID

import pytest
import yaml
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.directory_file.parse import parse
from taskherd.domain.directory import TemplatePool
from taskherd.domain.value import replace
from taskherd.store import directory, parked_reports, stats, tasks
from taskherd.store.engine import transaction
from taskherd.store.parked_reports import ReportToPark
from taskherd.store.task_creation import insert_tasks
from tests.store.conftest import NOW, event, task_row


@pytest.mark.parametrize("analyzed", [False, True])
async def test_counts_of_few_tasks_are_exact(engine: AsyncEngine, analyzed: bool) -> None:  # noqa: FBT001
    """Tasks are counted by status and their agents by health; deleted tasks are not counted."""
    rows = [task_row() for _ in range(3)]
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
        await tasks.save(connection, [], [event(rows[0].task.id, 1)])
        unhealthy = '{"workspace_agent_health":{"healthy":false,"reason":"agent has lost connection"}}'
        await connection.execute(
            text("UPDATE tasks SET document = CAST(CAST(:d AS text) AS json) WHERE id = :id"),
            {"d": unhealthy, "id": rows[0].task.id},
        )
        await connection.execute(text("UPDATE tasks SET deleted_at = now() WHERE id = :id"), {"id": rows[1].task.id})
    if analyzed:
        async with transaction(engine) as connection:
            await connection.execute(text("ANALYZE tasks"))
    async with transaction(engine) as connection:
        counts = await stats.counts(connection, [])
    assert counts.tasks == {("pending", "other", "other"): 2}
    assert counts.agents == {("none", "other", "other"): 1, ("agent has lost connection", "other", "other"): 1}
    assert counts.stalled == {("other", "other"): 0}
    assert (counts.unpublished, counts.oldest_unpublished_at, counts.parked) == (1, NOW, 0)


async def test_what_waits_is_counted_up_to_a_bound(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much waits, and it does in an outage, no more than so many rows are read."""
    rows = [task_row() for _ in range(5)]
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
        await tasks.save(connection, [], [event(row.task.id, 1) for row in rows])
        monkeypatch.setattr(stats, "MAX_WAITING", 3)
        counts = await stats.counts(connection, [])
    assert (counts.unpublished, counts.oldest_unpublished_at, counts.parked) == (3, NOW, 0)


async def test_counts_of_many_tasks_are_estimated(engine: AsyncEngine) -> None:
    """Above ``SAMPLE`` tasks a share of the pages is read, and what it contains is scaled up to the whole."""
    async with transaction(engine) as connection:
        await insert_tasks(connection, [task_row() for _ in range(400)])
        assume = text("UPDATE pg_class SET reltuples = :tasks WHERE oid = CAST('tasks' AS regclass)")
        await connection.execute(assume, {"tasks": 2 * stats.SAMPLE})
        counted = [(await stats.counts(connection, [])).tasks for _ in range(20)]
        await connection.execute(assume, {"tasks": stats.SAMPLE})
        assert (await stats.counts(connection, [])).tasks == {("pending", "other", "other"): 400}
    assert 300 < average(counted) < 500


@pytest.mark.parametrize("known", [-1, 0], ids=["never analyzed", "empty when analyzed"])
async def test_a_table_of_unknown_size_is_not_read_as_a_whole(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, known: int
) -> None:
    """It has grown faster than it was analyzed, as after a restore: how many tasks it has is guessed from its pages."""
    monkeypatch.setattr(stats, "SAMPLE", 100)
    async with transaction(engine) as connection:
        await insert_tasks(connection, [task_row() for _ in range(400)])
        unknown = text("UPDATE pg_class SET reltuples = :tasks WHERE oid = CAST('tasks' AS regclass)")
        await connection.execute(unknown, {"tasks": known})
        counted = [(await stats.counts(connection, [])).tasks for _ in range(40)]
    assert 300 < average(counted) < 500
    assert len({sum(each.values()) for each in counted}) > 1


def average(counted: Sequence[Mapping[tuple[str, ...], float]]) -> float:
    """Return the mean of how many tasks were counted."""
    return sum(sum(each.values()) for each in counted) / len(counted)


def template(number: int, organization: str, name: str, run: dict[str, str]) -> dict[str, object]:
    """Return a template of the directory file with one version, whose id is ``version_id(number)``."""
    version = {"id": str(version_id(number)), "name": "v1", "run": {"command": ["agent"], **run}}
    return {
        "id": str(UUID(int=number)),
        "organization": organization,
        "name": name,
        "active_version": version["id"],
        "versions": [version],
    }


def version_id(number: int) -> UUID:
    """Return the id of the version of a template."""
    return UUID(int=100 + number)


async def apply(engine: AsyncEngine, *templates: dict[str, object]) -> None:
    """Apply a directory of two organizations with these templates."""
    organizations = [{"id": str(UUID(int=1)), "name": "acme"}, {"id": str(UUID(int=2)), "name": "umbrella"}]
    content = yaml.safe_dump({"organizations": organizations, "users": [], "templates": templates})
    async with transaction(engine) as connection:
        await directory.apply(connection, parse(content.encode()), allow_deactivate=True)


async def test_tasks_are_counted_by_the_names_of_template_and_pool(engine: AsyncEngine) -> None:
    """Templates of two organizations with the same name count together; what metrics do not name is ``other``."""
    templates = [
        template(1, "acme", "claude", {"pool": "gpu"}),
        template(2, "umbrella", "claude", {"pool": "gpu"}),
        template(3, "acme", "aider", {}),
        template(4, "acme", "old", {}),
    ]
    await apply(engine, *templates)
    await apply(engine, *templates[:3])
    rows = [task_row() for _ in templates]
    rows = [
        row._replace(task=replace(row.task, template_version_id=version_id(number)))
        for number, row in enumerate(rows, start=1)
    ]
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
        named = await directory.template_pools(connection, 50)
        assert named == {TemplatePool("claude", "gpu"), TemplatePool("aider", "default")}
        assert await directory.template_pools(connection, 1) == {TemplatePool("aider", "default")}
        counts = await stats.counts(connection, named)
    assert counts.tasks == {
        ("pending", "claude", "gpu"): 2,
        ("pending", "aider", "default"): 1,
        ("pending", "other", "other"): 1,
    }


@pytest.mark.parametrize("table", ["template_versions", "templates", "organizations"])
async def test_metrics_name_only_what_is_active(engine: AsyncEngine, table: str) -> None:
    """A template is named while its organization, the template itself and a version of it with that pool are active."""
    await apply(engine, template(1, "acme", "claude", {"pool": "gpu"}), template(2, "umbrella", "aider", {}))
    inactive = {"template_versions": version_id(1), "organizations": UUID(int=1)}
    async with transaction(engine) as connection:
        assert await directory.template_pools(connection, 50) == {
            TemplatePool("claude", "gpu"),
            TemplatePool("aider", "default"),
        }
        where = "id = :id" if table in inactive else "name = 'claude'"
        await connection.execute(
            text(f"UPDATE {table} SET active = false WHERE {where}"),
            {"id": inactive[table]} if table in inactive else {},
        )
        assert await directory.template_pools(connection, 50) == {TemplatePool("aider", "default")}


async def test_agents_are_counted_by_health_and_stalled_ones_apart(engine: AsyncEngine) -> None:
    """By template and pool; what is parked, and the oldest unpublished change, are counted too."""
    await apply(engine, template(1, "acme", "claude", {"pool": "gpu"}), template(2, "acme", "aider", {}))
    documents = [
        (1, '{"workspace_agent_health":{"healthy":true,"reason":"x"},"stalled_since":"2026-01-01T00:00:00Z"}'),
        (1, '{"workspace_agent_health":{"healthy":false},"stalled_since":null}'),
        (1, '{"workspace_agent_health":{"healthy":true},"stalled_since":"2026-01-02T00:00:00Z"}'),
        (2, '{"workspace_agent_health":{"healthy":false,"reason":"lost"},"stalled_since":"2026-01-01T00:00:00Z"}'),
        (2, '{"workspace_agent_health":null}'),
    ]
    rows = [task_row()._replace(status=("active", "paused")[number % 2], document=each) for number, (_, each)
            in enumerate(documents)]  # fmt: skip
    rows = [
        row._replace(task=replace(row.task, template_version_id=version_id(number)))
        for row, (number, _) in zip(rows, documents, strict=True)
    ]
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
        later = [event(row.task.id, 1, NOW + timedelta(seconds=9 - number)) for number, row in enumerate(rows)]
        await tasks.save(connection, [], later)
        await parked_reports.park(connection, [ReportToPark(UUID(int=each), NOW, "{}") for each in (1, 2)], 9)
        counts = await stats.counts(connection, await directory.template_pools(connection, 50))
    assert counts.tasks == {
        ("active", "claude", "gpu"): 2, ("paused", "claude", "gpu"): 1,
        ("paused", "aider", "default"): 1, ("active", "aider", "default"): 1,
    }  # fmt: skip
    assert counts.agents == {
        ("healthy", "claude", "gpu"): 2, ("unhealthy", "claude", "gpu"): 1,
        ("lost", "aider", "default"): 1, ("none", "aider", "default"): 1,
    }  # fmt: skip
    assert counts.stalled == {("claude", "gpu"): 2, ("aider", "default"): 1}
    assert (counts.parked, counts.unpublished, counts.oldest_unpublished_at) == (2, 5, NOW + timedelta(seconds=5))


async def test_metrics_name_the_first_of_each_pair(engine: AsyncEngine) -> None:
    """Of two templates of the same name with the same pool one counts, so that the limit is one of names."""
    names = (("acme", "aider"), ("umbrella", "aider"), ("acme", "claude"), ("umbrella", "codex"))
    await apply(engine, *(template(number, *each, {"pool": "gpu"}) for number, each in enumerate(names, start=1)))
    async with transaction(engine) as connection:
        assert await directory.template_pools(connection, 2) == {
            TemplatePool("aider", "gpu"), TemplatePool("claude", "gpu")
        }  # fmt: skip
