"""The pytest plugin of a room: run given tests in the given order, and write down what each did.

``MUTATION_TESTS`` names a JSON file of test ids with their time limits in seconds; without it all tests run.
``MUTATION_OUTCOMES`` names the file to which a line of JSON is written for each test.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.startup import CURRENT, MEASURED

UNFIT = re.compile(r"/test_isolation\.py::.*\[(users and bwrap|cgroup|ordinary user)")
"""Tests that make namespaces or cgroups, which a sandbox refuses: left out, since most fail after a minute."""

TIMED_OUT = "from pytest-timeout"
"""What pytest-timeout says of a test that it stopped."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep only the given tests, in their order, each with its time limit; or all, but those that fail in a sandbox."""
    given = os.environ.get("MUTATION_TESTS")
    if given is None:
        config.hook.pytest_deselected(items=[item for item in items if UNFIT.search(item.nodeid)])
        items[:] = [item for item in items if not UNFIT.search(item.nodeid)]
        return
    limits: dict[str, float] = json.loads(Path(given).read_text())
    position = {test: number for number, test in enumerate(limits)}
    selected = sorted((item for item in items if item.nodeid in limits), key=lambda item: position[item.nodeid])
    for item in selected:
        item.add_marker(pytest.mark.timeout(limits[item.nodeid], method="signal", func_only=False), append=False)
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in limits])
    items[:] = selected


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """Count what is executed from here on for this test, and write down how long it took."""
    if MEASURED.is_dir():
        _switch_to(item.nodeid)
    started = time.monotonic()
    try:
        return (yield)
    finally:
        _write({"test": item.nodeid, "seconds": round(time.monotonic() - started, 3)})
        if MEASURED.is_dir():
            _switch_to("")


def _switch_to(context: str) -> None:
    import coverage  # noqa: PLC0415 - only where coverage is measured

    CURRENT.write_text(context, encoding="utf-8")
    current = coverage.Coverage.current()
    assert current is not None
    current.switch_context(context)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down a failure."""
    if report.failed:
        _write({"failed": report.nodeid, "phase": report.when, "error": report.longreprtext[-4_000:]})


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Write down a file that cannot be collected."""
    if report.failed:
        _write({"failed": report.nodeid, "phase": "collect", "error": report.longreprtext[-4_000:]})


def _write(record: dict[str, Any]) -> None:
    if path := os.environ.get("MUTATION_OUTCOMES"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
