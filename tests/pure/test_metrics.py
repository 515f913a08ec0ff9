"""Metrics follow Prometheus' conventions."""

import re
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from taskherd.api.app import ApiProcess
from taskherd.observability.metrics import Metrics, table
from taskherd.settings import Settings
from taskherd.worker.app import Worker


def test_names_follow_the_convention() -> None:
    """Names are in snake case with the prefix; only counters end in ``_total``; the unit is seconds or bytes."""
    for each in Metrics().declared:
        assert re.fullmatch(r"taskherd_[a-z]+(_[a-z]+)*", each.name)
        assert each.name.endswith("_total") == (each.kind == "counter")
        assert not re.search(r"_(ms|millis|milliseconds|minutes|count|sum|bucket)\b", each.name)
        assert each.help.endswith(".")


def test_no_label_is_an_id() -> None:
    """Every label has few values: none is the id or name of a task, agent or user."""
    labels = {label for each in Metrics().declared for label in each.labels}
    assert labels == {
        "server",
        "type",
        "outcome",
        "reason",
        "what",
        "status",
        "health",
        "connection",
        "version",
        "why",
        "template",
        "pool",
        "currency",
        "route",
        "method",
        "role",
        "installation",
        "step",
    }


def test_exactly_the_declared_metrics_are_exposed() -> None:
    """A scrape contains exactly the declared metrics and those of the process, once each."""
    metrics = Metrics()
    families = [family.name for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())]
    exposed = sorted(name for name in families if not name.startswith("process_"))
    assert exposed == sorted(each.name.removesuffix("_total") for each in metrics.declared)


def test_each_instance_has_its_own_registry() -> None:
    """Two workers in one process count separately."""
    one, other = Metrics(), Metrics()
    one.reports.labels("app.status", "applied").inc(3)
    assert one.registry.get_sample_value("taskherd_reports_total", {"type": "app.status", "outcome": "applied"}) == 3
    assert (
        other.registry.get_sample_value("taskherd_reports_total", {"type": "app.status", "outcome": "applied"}) is None
    )


def test_a_vanished_label_value_is_set_to_zero() -> None:
    """A status that no task has any more is exposed as 0, not with its last count."""
    metrics = Metrics()
    metrics.set_counts(metrics.tasks, {("active", "claude", "gpu"): 2, ("error", "claude", "gpu"): 1})
    metrics.set_counts(metrics.tasks, {("active", "claude", "gpu"): 5})
    labels = {"template": "claude", "pool": "gpu"}
    assert metrics.registry.get_sample_value("taskherd_tasks", {"status": "active", **labels}) == 5
    assert metrics.registry.get_sample_value("taskherd_tasks", {"status": "error", **labels}) == 0


@pytest.mark.parametrize("process", [ApiProcess, Worker])
async def test_an_armed_failpoint_is_shown(process: type[ApiProcess] | type[Worker]) -> None:
    """An alert fires for a process that a test could kill, an API as well as a worker."""
    urls: dict[str, Any] = {"database_url": "postgresql://db/t", "amqp_url": "amqp://mq/"}
    settings = [Settings(**urls, secret_key="s" * 32, failpoint=failpoint) for failpoint in ("", "action_saved:kill")]
    shown = [process(each).metrics.registry.get_sample_value("taskherd_failpoint_armed") for each in settings]
    assert shown == [0, 1]


def test_every_metric_is_documented() -> None:
    """The documentation's table has a row for every metric."""
    assert len(table().splitlines()) == 2 + len(Metrics().declared)
