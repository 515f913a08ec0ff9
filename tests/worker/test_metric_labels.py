"""Metrics by template and pool follow the directory, and stay bounded."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable

import yaml

from taskherd.directory_file.parse import parse
from taskherd.domain.directory import OTHER, TemplatePool
from taskherd.observability.metrics import Metrics
from taskherd.store import directory
from taskherd.store.engine import dispose, open_engine, transaction
from taskherd.worker import metric_labels
from taskherd.worker.directory_cache import MAX_TEMPLATE_POOLS
from tests.harness.worker import ALICE, ORGANIZATION, TIMEOUT, WorkerHarness, make_report

LOST = "taskherd_agent_exits_total"


def named(metrics: Metrics) -> set[tuple[str, str]]:
    """Return the pairs of template and pool of all series."""
    samples = (sample for family in metrics.registry.collect() for sample in family.samples)
    labels = [sample.labels for sample in samples if "template" in sample.labels]
    return {(each["template"], each["pool"]) for each in labels}


def version_of(number: int) -> uuid.UUID:
    """Return the id of a template's version."""
    return uuid.UUID(int=1_000 + number)


async def apply(harness: WorkerHarness, templates: Iterable[tuple[int, str, str]]) -> None:
    """Replace the directory's templates by these, each (number, name, pool)."""
    content = {
        "organizations": [{"id": str(ORGANIZATION), "name": "acme"}],
        "users": [
            {"id": str(ALICE), "username": "alice", "email": "a@example.com", "organizations": {"acme": "member"}}
        ],
        "templates": [
            {
                "id": str(uuid.UUID(int=1 + number)),
                "organization": "acme",
                "name": name,
                "active_version": str(version_of(number)),
                "versions": [
                    {"id": str(version_of(number)), "name": "v1", "run": {"pool": pool, "command": ["agent"]}}
                ],
            }
            for number, name, pool in templates
        ],
    }
    engine = open_engine(harness.urls[0], size=1, application_name="tests")
    async with transaction(engine) as connection:
        await directory.apply(connection, parse(yaml.safe_dump(content).encode()), allow_deactivate=True)
    await dispose(engine)


async def until_named(metrics: Metrics, pairs: set[tuple[str, str]]) -> None:
    """Poll until exactly these templates and pools have series; a sweep sends no notification."""
    async with asyncio.timeout(TIMEOUT):
        while named(metrics) != pairs | {OTHER}:  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.02)


async def lose(harness: WorkerHarness, task_id: uuid.UUID, number: int) -> None:
    """Report that the agent of a task's build is lost."""
    await harness.make_active(task_id, number)
    await harness.report(make_report("agent.exit", task_id, build_number=number, why="lost"))
    await harness.until(lambda: harness.document(task_id).get("agent_exit"))


async def test_the_labels_follow_the_directory(harness: WorkerHarness) -> None:
    """A new template has series before anything happens to its tasks; those of one that is gone count as ``other``."""
    metrics = harness.worker.metrics
    await apply(harness, [(1, "aider", "gpu")])
    await until_named(metrics, {("aider", "gpu")})
    labels = {"why": "lost", "template": "aider", "pool": "gpu"}
    assert metrics.registry.get_sample_value(LOST, labels) == 0
    task_id = await harness.create(template_version_id=str(version_of(1)))
    await lose(harness, task_id, 1)
    await harness.until_metric(1, LOST, **labels)

    await apply(harness, [(2, "codex", "default")])
    await until_named(metrics, {("codex", "default")})
    assert (await harness.command("task.resume", task_id))["ok"]
    await lose(harness, task_id, 2)
    await harness.until_metric(1, LOST, why="lost", template="other", pool="other")
    assert named(metrics) == {("codex", "default"), OTHER}


async def test_the_number_of_series_is_bounded(harness: WorkerHarness) -> None:
    """Of many templates the first by name have series of their own, however often the directory changes."""
    metrics = harness.worker.metrics
    templates = [(number, f"t{number:03}", f"p{number:03}") for number in range(MAX_TEMPLATE_POOLS + 10)]
    for gone in range(3):
        await apply(harness, templates[gone:])
        await until_named(metrics, {(name, pool) for _, name, pool in templates[gone : gone + MAX_TEMPLATE_POOLS]})
    families = [family.samples for family in metrics.registry.collect()]
    series = sum("template" in sample.labels for samples in families for sample in samples)
    assert series <= 40 * (MAX_TEMPLATE_POOLS + 1)


def test_following_keeps_the_counts_of_what_stays() -> None:
    """A pair that stays keeps its counts; ``other`` is never removed, also if a template is called so."""
    metrics = Metrics()
    stays, goes = TemplatePool("claude", "default"), TemplatePool("aider", "gpu")
    metric_labels.initialize(metrics)
    metric_labels.follow(metrics, set(), {stays, goes, OTHER})
    metrics.agent_events.labels("lost", *stays).inc()
    metrics.set_counts(metrics.agents, {("healthy", *goes): 1})
    metric_labels.follow(metrics, {stays, goes, OTHER}, {stays})
    labels = {"type": "lost", "template": "claude", "pool": "default"}
    assert metrics.registry.get_sample_value("taskherd_agent_events_total", labels) == 1
    assert named(metrics) == {stays, OTHER}
