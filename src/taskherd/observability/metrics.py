"""Every metric of taskherd, declared once, in Prometheus' naming (https://prometheus.io/docs/practices/naming/).

No task, agent or user id is ever a label: each label here takes few, known values.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NAMESPACE = "taskherd"
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """One metric as it is exposed."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


class Metrics:
    """All metrics of one process, on a registry of their own."""

    def __init__(self) -> None:
        without_start_times: Callable[[], None] = disable_created_metrics  # which would double the series for no reader
        without_start_times()
        self.registry = CollectorRegistry()
        self.declared: list[MetricInfo] = []
        ProcessCollector(registry=self.registry)
        self._declare_intake()
        self._declare_outlet()
        self._declare_api()
        self._declare_state()
        self._declare_surroundings()
        self._declare_runner()

    def _declare_intake(self) -> None:
        self.reports = self._counter(
            "reports",
            "Reports judged, by type (`unknown` for one that has none) and outcome: "
            "applied, unchanged, stale, parked, invalid, tombstone or conflict.",
            "type",
            "outcome",
        )
        self.commands = self._counter(
            "commands",
            "Commands judged, by type and outcome: accepted, refused, repeated or invalid.",
            "type",
            "outcome",
        )
        self.batch_size = self._histogram("batch_size", "Deliveries in one batch.", _SIZES)
        self.batch_seconds = self._histogram(
            "batch_seconds", "Time from taking a batch in hand to its commit.", _SECONDS
        )
        self.in_flight = self._gauge(
            "in_flight_deliveries", "Report deliveries held: waiting here, or in the batch in hand."
        )
        self.redeliveries = self._counter("redeliveries", "Deliveries the broker had handed out before.")
        self.dead_lettered = self._counter("dead_lettered", "Messages sent to the dead letters, by reason.", "reason")
        self.texts_cleaned = self._counter(
            "texts_cleaned", "Texts from outside that were changed, by what: control, uri or cut.", "what"
        )
        self.batch_failures = self._counter(
            "batch_failures",
            "Batches that failed and were tried again, by reason: database, broker, or bisected to find a bad one.",
            "reason",
        )

    def _declare_outlet(self) -> None:
        self.publish_lag_seconds = self._histogram(
            "publish_lag_seconds", "Time from the commit of a change to the broker's confirm of its event.", _SECONDS
        )
        self.events_published = self._counter("events_published", "Events the broker confirmed.")
        self.outbox_events = self._gauge("outbox_events", "Events committed and not yet confirmed.")
        self.outbox_oldest_seconds = self._gauge("outbox_oldest_seconds", "Age of the oldest event not yet confirmed.")
        self.requests_sent = self._counter("requests_sent", "Work requests sent, repeats included, by type.", "type")
        self.requests_given_up = self._counter(
            "requests_given_up", "Work requests and builds that nobody answered in time, by type.", "type"
        )
        self.deletes_retried = self._counter("deletes_retried", "Workspace deletes asked for again after a failure.")

    def _declare_api(self) -> None:
        self.api_requests = self._counter(
            "api_requests",
            "Requests answered by the API, by route (the path with its parameters unfilled), method and status.",
            "route",
            "method",
            "status",
        )
        self.api_seconds = self._histogram(
            "api_seconds", "Time from a request's head to its answer, streams left out.", _SECONDS
        )
        self.api_in_flight = self._gauge("api_requests_in_flight", "Requests that the API is answering.")
        self.api_commands_waiting = self._gauge("api_commands_waiting", "Writes that wait for the worker's reply.")
        self.api_followers = self._gauge("api_followers", "Readers that follow tasks or wait for one.")
        self.api_crashes = self._counter("api_crashes", "Requests answered with 500 because of a mistake of ours.")

    def _declare_state(self) -> None:
        self.tasks = self._gauge("tasks", "Tasks that are not deleted, by status.", "status")
        self.agents = self._gauge("agents", "Agents by health: healthy, or the reason why not.", "health")
        self.parked = self._gauge("parked_reports", "Reports that wait for their task's create.")
        self.sweeps = self._counter("sweeps", "Looks at the timers.")
        self.sweeps_held = self._counter(
            "sweeps_held", "Sweeps that held back because most agents fell silent at once."
        )
        self.mass_silence_held = self._gauge("mass_silence_held", "1 while the silence of most agents is not believed.")
        self.drained = self._gauge("drained", "1 while the report queues are known to be drained.")
        self.probe_seconds = self._histogram(
            "probe_seconds",
            "Lag from publish to commit: the time of a probe through the report queue, behind all that was before it.",
            _SECONDS,
        )

    def _declare_surroundings(self) -> None:
        self.broker_up = self._gauge("broker_up", "1 while connected to RabbitMQ.")
        self.database_up = self._gauge("database_up", "1 while the last use of PostgreSQL succeeded.")
        self.reconnects = self._counter(
            "reconnects",
            "Connections made again after a loss, by connection: consume or publish.",
            "connection",
        )
        self.pool_in_use = self._gauge("database_connections_in_use", "Database connections taken from the pool.")
        self.failpoint_armed = self._gauge("failpoint_armed", "1 where a failpoint is set; never in production.")
        self.build_info = self._gauge("build_info", "1, with the version of taskherd as a label.", "version")

    def _declare_runner(self) -> None:
        self.runner_tasks = self._gauge("runner_tasks", "Tasks that have a place on this runner.")
        self.runner_agents = self._gauge("runner_agents", "Agents that run here.")
        self.runner_requests = self._counter(
            "runner_requests",
            "Work requests, by type and outcome: done, failed, repeated, ignored (an older build), lost (another "
            "runner has claimed it), left (its task is gone, or no worker answered the claim of a copy) or invalid.",
            "type",
            "outcome",
        )
        self.runner_reports = self._counter("runner_reports", "Reports the broker confirmed to this runner.")
        self.runner_waiting_bytes = self._gauge("runner_waiting_bytes", "Bytes of reports that wait to be sent.")
        self.runner_endings = self._counter(
            "runner_endings", "Agents that ended, by reason: exited, stopped, timeout or lost.", "reason"
        )
        self.runner_adopted = self._counter(
            "runner_adopted",
            "Agents of an earlier runner, by outcome: running, ended or lost.",
            "outcome",
        )
        self.runner_orphans = self._counter(
            "runner_orphans", "Tasks found on this disk that no live task owned, and cleaned up."
        )
        self.runner_output_lost = self._counter(
            "runner_output_lost_bytes", "Bytes of agents' output that were not kept."
        )
        self.runner_agent_events_bad = self._counter(
            "runner_agent_events_bad", "Events of an AgentAPI that could not be read."
        )

    def replace(self, gauge: Gauge, counts: Mapping[str, float]) -> None:
        """Set a gauge of one label to `counts`; a label value seen before and missing now goes to 0."""
        for family in gauge.collect():
            for sample in family.samples:
                for seen in sample.labels.values():
                    gauge.labels(seen).set(counts.get(seen, 0))
        for value, count in counts.items():
            gauge.labels(value).set(count)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        self._note(f"{name}_total", "counter", labels, meaning)
        return Counter(name, meaning, labels, namespace=NAMESPACE, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        self._note(name, "gauge", labels, meaning)
        return Gauge(name, meaning, labels, namespace=NAMESPACE, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        self._note(name, "histogram", (), meaning)
        return Histogram(name, meaning, namespace=NAMESPACE, registry=self.registry, buckets=buckets)

    def _note(self, name: str, kind: str, labels: tuple[str, ...], meaning: str) -> None:
        self.declared.append(MetricInfo(f"{NAMESPACE}_{name}", kind, labels, meaning))


def table() -> str:
    """Return a Markdown table of every metric."""
    rows = ["| metric | kind | labels | what it says |", "|---|---|---|---|"]
    for each in sorted(Metrics().declared, key=lambda declared: declared.name):
        labels = ", ".join(f"`{label}`" for label in each.labels)
        rows.append(f"| `{each.name}` | {each.kind} | {labels} | {each.meaning} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
