"""The series in the unit tests of alerts are those of real processes, recorded or not."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import record_scrapes
from tests.deploy.record_scrapes import FILE, GROWING, VARIABLE, recorded, render, unit_test
from tests.deploy.scenarios import SCENARIOS, Scenario, stage_of
from tests.harness.scrapes import ScrapedProcess, Series
from tests.harness.worker import WorkerHarness

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TESTS = FILE.parent
SERIES = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
NOT_OURS = frozenset({"up"})
"""Metrics that Prometheus makes itself."""
OF_OTHERS = ("etcd_", "patroni_")
"""How the names of those begin that the tests of failovers read from a cluster."""


def key_of(text: str) -> tuple[str, Series]:
    """Return the job of a series in a unit test, and its key in a scrape of that job."""
    name, _, labels = text.partition("{")
    values = dict(SERIES.findall(labels))
    job = values.pop("job")
    values.pop("instance", None)
    return job, (name, frozenset(values.items()))


def all_series(path: Path) -> set[tuple[str, Series]]:
    """Return the series of all unit tests of a file."""
    tests = yaml.safe_load(path.read_text())["tests"]
    found = {key_of(each["series"]) for test in tests for each in test.get("input_series", ())}
    return {(job, key) for job, key in found if key[0] not in NOT_OURS and not key[0].startswith(OF_OTHERS)}


def comparable(test: dict[str, Any], *, repeats: bool) -> dict[str, str]:
    """Return the series of a unit test with their values; not those of series that depend on time."""
    return {
        each["series"]: "" if repeats or key_of(each["series"])[1][0] in GROWING else each["values"]
        for each in test["input_series"]
    }


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.happen.__name__)
async def test_scenario(scenario: Scenario, external: WorkerHarness, tmp_path: Path) -> None:
    """What happens again to real processes gives the recorded series; a counter has a series before it first counts."""
    async with stage_of(external, tmp_path) as stage:
        recordings = {each.role: each for each in await scenario.happen(stage)}
    for each in recordings.values():
        new = {name for name, _ in each.after.keys() - each.before.keys()}
        assert not [name for name in new if name.endswith("_total")]
    fresh = [unit_test(scenario, alert, recordings[role]) for alert, role in scenario.alerts.items()]
    if VARIABLE in os.environ:
        kept = recorded() if FILE.exists() else {}
        kept[scenario.title] = fresh
        FILE.write_text(render((each.title, test) for each in SCENARIOS for test in kept.get(each.title, ())))
        return
    for test, now in zip(recorded()[scenario.title], fresh, strict=True):
        assert test["name"] == now["name"]
        assert comparable(test, repeats=scenario.repeats) == comparable(now, repeats=scenario.repeats)
        assert test["promql_expr_test"] == now["promql_expr_test"]


def test_the_file_is_as_it_is_generated() -> None:
    """The file has the unit tests of the scenarios and nothing else."""
    found = recorded()
    assert list(found) == [scenario.title for scenario in SCENARIOS]
    assert render((title, test) for title, tests in found.items() for test in tests) == FILE.read_text()


async def test_the_series_of_all_unit_tests_are_exposed(external: WorkerHarness, tmp_path: Path) -> None:
    """A process that was just started exposes each series of the other unit tests, or one was recorded."""
    exposed = all_series(FILE)
    for role in ("worker", "api", "runner"):
        process = await ScrapedProcess.start(role, tmp_path, external)
        try:
            scrape = await process.until(
                lambda found: role != "worker" or any(("template", "claude") in labels for _, labels in found)  # noqa: B023
            )
        finally:
            await process.stop()
        exposed |= {(f"taskherd-{role}", key) for key in scrape}
    for path in sorted(TESTS.glob("*.yml")):
        assert all_series(path) - exposed == set(), path.name


def test_every_alert_that_reads_labels_is_recorded() -> None:
    """Each alert that reads a counter or gauge with labels fires for something that was recorded."""
    labelled = record_scrapes.labelled()
    alerts = {alert for alert in record_scrapes.alerts() if record_scrapes.inputs_of(alert) & labelled}
    assert alerts <= {alert for scenario in SCENARIOS for alert in scenario.alerts}
