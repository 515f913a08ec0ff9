"""A process exports all values of all labels of its counters from the start: Prometheus misses a first increment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import taskherd.api.metric_labels as api
import taskherd.runner.metric_labels as runner
import taskherd.worker.metric_labels as worker
from taskherd.observability.metrics import TEMPLATE_AND_POOL, Metrics
from tests.harness.scrapes import Scrape, ScrapedProcess, series
from tests.harness.worker import WorkerHarness

PAIRS = (("claude", "default"), ("other", "other"))
"""The template and pool of the harness's directory, and all others."""

BY_TEMPLATE = {
    name: tuple((value, *pair) for value in values for pair in PAIRS)
    for name, values in worker.VALUES_PER_TEMPLATE.items()
}
RECONNECTS = {"reconnects": (("consume",), ("publish",))}
WORKER_RECONNECTS = {
    "reconnects": (("consume",), ("publish",), ("reports",), ("unconfirmed",), ("work",), ("dead",), ("declare",))
}
DECLARED: Mapping[str, Mapping[str, Sequence[tuple[str, ...]]]] = {
    "worker": {**worker.LABEL_VALUES, **BY_TEMPLATE, **WORKER_RECONNECTS},
    "api": {**api.LABEL_VALUES, **RECONNECTS},
    "runner": {**runner.LABEL_VALUES, **RECONNECTS},
}
LABELS = {each.name: each.labels for each in Metrics().declared if each.kind == "counter" and each.labels}


def exposed(scrape: Scrape) -> dict[str, set[tuple[str, ...]]]:
    """Return the values of the labels of each counter that has any series, in the order of its labels."""
    found: dict[str, set[tuple[str, ...]]] = {}
    for name, labels in scrape:
        if name in LABELS:
            values = dict(labels)
            found.setdefault(name, set()).add(tuple(values[label] for label in LABELS[name]))
    return found


def test_every_counter_with_labels_is_declared_by_a_process() -> None:
    """Each counter with labels is some process's, and each declaration is of a counter with as many labels."""
    declared = [
        (f"taskherd_{name}_total", values) for counters in DECLARED.values() for name, values in counters.items()
    ]
    assert {name for name, _ in declared} == set(LABELS)
    for name, values in declared:
        assert {len(each) for each in values} == {len(LABELS[name])}, name
        assert len(values) == len(set(values)), name
    by_template = {name for name, labels in LABELS.items() if labels[-2:] == TEMPLATE_AND_POOL}
    assert by_template == {f"taskherd_{name}_total" for name in worker.VALUES_PER_TEMPLATE}


@pytest.mark.parametrize("role", DECLARED)
async def test_a_process_exports_all_label_values_at_start(role: str, external: WorkerHarness, tmp_path: Path) -> None:
    """The first scrapes of a process have exactly the declared values."""
    process = await ScrapedProcess.start(role, tmp_path, external)
    try:
        expected = {f"taskherd_{name}_total": set(values) for name, values in DECLARED[role].items()}
        if role == "worker":  # templates and pools are known with the first sweep
            labels = {"type": "lost", "template": "claude", "pool": "default"}
            scrape = await process.until_value(0, "taskherd_agent_events_total", **labels)
            assert series("taskherd_tasks", status="error", template="claude", pool="default") in scrape
        else:
            scrape = await process.until(bool)
        assert exposed(scrape) == expected
    finally:
        await process.stop()
