"""All metrics of taskherd, named by Prometheus' conventions (https://prometheus.io/docs/practices/naming/).

No task, agent or user id is a label: every label has few, known values. A process declares the values of its counters
in its ``metric_labels.py`` and sets all of them to 0 at start: Prometheus misses the first increment of a new series.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

M = TypeVar("M", Counter, Gauge)

NAMESPACE = "taskherd"
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
TEMPLATE_AND_POOL = ("template", "pool")
"""The last labels of metrics by template and pool; the worker bounds the number of their values."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """A metric as it is exposed."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class Metrics:
    """All metrics of one process, in their own registry."""

    def __init__(self) -> None:
        disable_start_times: Callable[[], None] = disable_created_metrics  # unused, and they would double the series
        disable_start_times()
        self.registry = CollectorRegistry()
        self.declared: list[MetricInfo] = []
        self._counters: dict[str, Counter] = {}
        self._by_template_and_pool: list[Counter | Gauge] = []
        ProcessCollector(registry=self.registry)
        self._declare_consuming()
        self._declare_publishing()
        self._declare_api()
        self._declare_state()
        self._declare_dependencies()
        self._declare_runner()

    def _declare_consuming(self) -> None:
        self.reports = self._counter(
            "reports",
            "Reports processed, by type (`unknown` if it has none) and outcome: "
            "applied, unchanged, stale, parked, refused, invalid, tombstone or conflict.",
            "type",
            "outcome",
        )
        self.commands = self._counter(
            "commands",
            "Commands processed, by type and outcome: accepted, refused, repeated or invalid.",
            "type",
            "outcome",
        )
        self.claims = self._counter(
            "claims",
            "Messages of runners processed, by type and outcome: granted, repeated (granted again to the same runner), "
            "taken (another runner has the build) or gone for build.claim, answered for task.owned, accepted or "
            "refused for runner.hello, and invalid.",
            "type",
            "outcome",
        )
        self.batch_size = self._histogram("batch_size", "Number of report deliveries in a batch.", _SIZES)
        self.batch_seconds = self._histogram(
            "batch_seconds", "Seconds from the start of a batch to its commit, retries included.", _SECONDS
        )
        self.in_flight = self._gauge(
            "in_flight_deliveries",
            "Report deliveries in this worker that are not acknowledged: buffered or in a batch.",
        )
        self.redeliveries = self._counter(
            "redeliveries",
            "Report deliveries that were delivered before. A high rate indicates lost connections or crashes.",
        )
        self.dead_lettered = self._counter("dead_lettered", "Messages published as dead letters, by reason.", "reason")
        self.texts_cleaned = self._counter(
            "texts_cleaned",
            "Texts in reports that were changed, by cause: control (control characters removed, or escaped if "
            "bidirectional), uri (URI cleared) or cut (truncated).",
            "what",
        )
        self.batch_failures = self._counter(
            "batch_failures",
            "Batches that failed and were tried again, by reason: database, broker, or bisected (to find an invalid "
            "report, or because they took too long).",
            "reason",
        )

    def _declare_publishing(self) -> None:
        self.publish_lag_seconds = self._histogram(
            "publish_lag_seconds",
            "Seconds from the `updated_at` of a change, which is set before its transaction, to the broker's "
            "confirm of its event.",
            _SECONDS,
        )
        self.events_published = self._counter("events_published", "Events that the broker confirmed.")
        self.outbox_events = self._gauge(
            "outbox_events", "Committed events that the broker has not confirmed, counted up to 100,000."
        )
        self.outbox_oldest_seconds = self._gauge(
            "outbox_oldest_seconds",
            "Age of the oldest unconfirmed event, in seconds. It rises while nothing is published.",
        )
        self.requests_sent = self._counter("requests_sent", "Work requests sent, repeats included, by type.", "type")
        self.requests_given_up = self._counter(
            "requests_given_up",
            "Work requests that were not answered in time, and builds that fell silent, by type, template and pool.",
            "type",
            *TEMPLATE_AND_POOL,
        )
        self.tasks_erased = self._counter("tasks_erased", "Deleted tasks whose contents were erased.")
        self.timer_checks_failed = self._counter(
            "timer_checks_failed",
            "Timer checks of single tasks that failed and are tried again minutes later; the log names the tasks.",
        )
        self.deletes_retried = self._counter("deletes_retried", "Workspace deletes requested again after a failure.")
        self.maintenance_failures = self._counter(
            "maintenance_failures",
            "Steps of the maintenance of tables that failed and are tried again, by step: expire_parked, "
            "create_partitions, drop_partitions, update_tables, prune, erase, count or index.",
            "step",
        )

    def _declare_api(self) -> None:
        self.api_requests = self._counter(
            "api_requests",
            "HTTP requests answered, by route (the path with placeholders), method and status.",
            "route",
            "method",
            "status",
        )
        self.api_seconds = self._histogram(
            "api_seconds",
            "Seconds from the head of an HTTP request to its response; streams and waiting long polls are not counted.",
            _SECONDS,
        )
        self.api_in_flight = self._gauge("api_requests_in_flight", "HTTP requests in progress.")
        self.api_commands_waiting = self._gauge(
            "api_commands_waiting", "Writes that wait for the worker's reply. It rises while workers cannot keep up."
        )
        self.api_reads = self._counter(
            "api_reads",
            "Reads of users' GET requests, by the server that executed them: primary or standby; none without "
            "TASKHERD_DATABASE_READ_URL.",
            "server",
        )
        self.api_standby_lag = self._gauge(
            "api_standby_lag_seconds",
            "Age of the newest change that the standby may lack; infinite if it does not answer, 0 without a standby.",
        )
        self.api_action_tasks = self._counter(
            "api_action_tasks",
            "Tasks that actions were executed for, by outcome: succeeded, refused (also if the task is not visible any "
            "more), or unconfirmed, after which the command is sent again unless the action has ended.",
            "outcome",
        )
        self.api_followers = self._gauge("api_followers", "Readers of the change feed: streams and long polls.")
        self.api_sign_in_failures = self._counter(
            "api_sign_in_failures",
            "HTTP requests whose token was not accepted, by reason: missing, malformed, unknown, expired, revoked, "
            "deactivated (its user) or rate_limited (refused without a lookup, after too many failures of its client).",
            "reason",
        )
        self.api_connections_closed = self._counter(
            "api_connections_closed",
            "Client connections closed because there were too many, by reason: client (without a valid token, of one "
            "client), anonymous (without a valid token, of all clients), total, idle (of the holder with the most; "
            "its client connects again) or busy (of the user with the most, above an eighth, if none is idle).",
            "reason",
        )
        self.api_crashes = self._counter(
            "api_crashes",
            "HTTP requests answered with 500, and steps of task actions that failed, because of a bug; see the log.",
        )

    def _declare_state(self) -> None:
        self.tasks = self._gauge(
            "tasks", "Tasks that are not deleted, by status, template and pool.", "status", *TEMPLATE_AND_POOL
        )
        self.agents = self._gauge(
            "agents",
            "Agents by health (healthy, or the reason why they are not), template and pool.",
            "health",
            *TEMPLATE_AND_POOL,
        )
        self.agents_stalled = self._gauge(
            "agents_stalled",
            "Agents that are working and have sent nothing but heartbeats for `stalled_after`, by template and pool.",
            *TEMPLATE_AND_POOL,
        )
        self.agent_events = self._counter(
            "agent_events",
            "What happened to agents, by type (started, lost (fell silent) or stalled), template and pool.",
            "type",
            *TEMPLATE_AND_POOL,
        )
        self.agent_exits = self._counter(
            "agent_exits",
            "Agents that ended, by why (exited, signalled, out_of_memory, timeout, lost (nothing recorded the end), "
            "stopped, interrupted or not_started), template and pool.",
            "why",
            *TEMPLATE_AND_POOL,
        )
        self.usage_tokens = self._counter(
            "usage_tokens",
            "Tokens that agents reported as used, by type (input, output, cache_read or cache_write), template and "
            "pool.",
            "type",
            *TEMPLATE_AND_POOL,
        )
        self.usage_cost = self._counter(
            "usage_cost",
            "Cost that agents reported, in units of its currency (ISO 4217), by currency, template and pool. It is "
            "rounded; the exact sums are in `GET /api/v2/usage`.",
            "currency",
            *TEMPLATE_AND_POOL,
        )
        self.interrupts = self._counter(
            "interrupts",
            "Interrupts of agents that ended, by outcome (stopped, ended (the agent did nothing any more) or failed), "
            "template and pool.",
            "outcome",
            *TEMPLATE_AND_POOL,
        )
        self.parked = self._gauge(
            "parked_reports", "Reports parked until their task is created, counted up to 100,000."
        )
        self.sweeps = self._counter("sweeps", "Checks for overdue tasks. One worker at a time makes them.")
        self.sweeps_held = self._counter(
            "sweeps_held", "Sweeps that marked no agent as lost because most fell silent at once."
        )
        self.mass_silence_held = self._gauge(
            "mass_silence_held", "1 while the mass-loss guard waits before it marks most agents as lost."
        )
        self.index_lag = self._gauge(
            "index_lag_seconds",
            "Time in seconds for which changes of tasks have waited, without interruption, until they are in the index "
            "of lists and totals, which look at all that wait.",
        )
        self.drained = self._gauge("drained", "1 while this worker knows the report queues to be drained.")
        self.probe_seconds = self._histogram(
            "probe_seconds",
            "Lag from publish to commit, in seconds: the time of a probe through a report queue, behind all earlier "
            "reports.",
            _SECONDS,
        )

    def _declare_dependencies(self) -> None:
        self.broker_up = self._gauge("broker_up", "1 while the connections to RabbitMQ are up that the process needs.")
        self.database_up = self._gauge("database_up", "1 if PostgreSQL took the writes of the last sweep.")
        self.reconnects = self._counter(
            "reconnects",
            "Connections to RabbitMQ made again after a loss, by connection: consume, publish, reports, unconfirmed, "
            "work, dead or declare.",
            "connection",
        )
        self.pool_in_use = self._gauge(
            "database_connections_in_use", "Database connections in use; the maximum is TASKHERD_DATABASE_POOL."
        )
        self.failpoint_armed = self._gauge("failpoint_armed", "1 if a failpoint is set; must be 0 in production.")
        self.build_info = self._gauge("build_info", "1, with the version of taskherd as a label.", "version")
        self.process_info = self._gauge(
            "process_info",
            "1, with the role of this process (worker, api or runner) and a digest of its broker's address and AMQP "
            "prefix, which all processes of an installation share, as labels.",
            "role",
            "installation",
        )

    def _declare_runner(self) -> None:
        self.runner_tasks = self._gauge("runner_tasks", "Tasks that have a workspace on this runner.")
        self.runner_agents = self._gauge("runner_agents", "Agents running on this runner.")
        self.runner_draining = self._gauge(
            "runner_draining",
            "1 while the runner pauses its agents because it was told to stop, until it exits, else 0.",
        )
        self.runner_requests = self._counter(
            "runner_requests",
            "Work requests, by type and outcome: done, failed, repeated, ignored (an older build, or an "
            "answer to a request that is not known), lost (claimed by "
            "another runner), left (not started: the build is gone, or no worker answered the claim of a repeated "
            "request), refused (not started: a worker refused the claim) or invalid. A claim that is won is not "
            "counted itself.",
            "type",
            "outcome",
        )
        self.runner_reports = self._counter("runner_reports", "Reports of this runner that the broker confirmed.")
        self.runner_waiting_bytes = self._gauge(
            "runner_waiting_bytes", "Bytes of unsent reports; the maximum is TASKHERD_RUNNER_BUFFER_MOST."
        )
        self.runner_endings = self._counter(
            "runner_endings", "Agents that ended, by reason, with the values of `taskherd_agent_exits_total`.", "reason"
        )
        self.runner_adopted = self._counter(
            "runner_adopted",
            "Agents that an earlier run of the runner had started, by outcome: running, ended or lost.",
            "outcome",
        )
        self.runner_orphans = self._counter(
            "runner_orphans",
            "Workspaces on this disk that were removed because their task was deleted, without a request.",
        )
        self.runner_output_lost = self._counter("runner_output_lost_bytes", "Bytes of agent output that were dropped.")
        self.runner_agent_events_bad = self._counter(
            "runner_agent_events_bad",
            "Events of an AgentAPI server, and lines of an ACP agent, that could not be decoded.",
        )

    def initialize(self, label_values: Mapping[str, Iterable[Sequence[str]]]) -> None:
        """Set counters to 0: the values of their labels, in order, by the name without prefix and ``_total``."""
        for name, values in label_values.items():
            for each in values:
                self._counters[name].labels(*each)

    def forget(self, template: str, pool: str) -> None:
        """Expose no series of this template and pool any longer."""
        for metric in self._by_template_and_pool:
            metric.remove_by_labels(dict(zip(TEMPLATE_AND_POOL, (template, pool), strict=True)))

    def set_counts(self, gauge: Gauge, counts: Mapping[tuple[str, ...], float]) -> None:
        """Set a gauge with labels to ``counts``, by label values in order; those no longer in ``counts`` become 0."""
        family = next(iter(gauge.collect()))
        labels = next(each.labels for each in self.declared if each.name == family.name)
        exposed = {tuple(sample.labels[label] for label in labels) for sample in family.samples}
        for values in exposed - counts.keys():
            gauge.labels(*values).set(0)
        for values, count in counts.items():
            gauge.labels(*values).set(count)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        self._declare(f"{name}_total", "counter", labels, meaning)
        counter = Counter(name, meaning, labels, namespace=NAMESPACE, registry=self.registry)
        self._counters[name] = counter
        return self._track(counter, labels)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        self._declare(name, "gauge", labels, meaning)
        return self._track(Gauge(name, meaning, labels, namespace=NAMESPACE, registry=self.registry), labels)

    def _track(self, metric: M, labels: tuple[str, ...]) -> M:
        if labels[-2:] == TEMPLATE_AND_POOL:
            self._by_template_and_pool.append(metric)
        return metric

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        self._declare(name, "histogram", (), meaning)
        return Histogram(name, meaning, namespace=NAMESPACE, registry=self.registry, buckets=buckets)

    def _declare(self, name: str, kind: str, labels: tuple[str, ...], meaning: str) -> None:
        self.declared.append(MetricInfo(f"{NAMESPACE}_{name}", kind, labels, meaning))


def table() -> str:
    """Return a Markdown table of all metrics."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for each in sorted(Metrics().declared, key=lambda declared: declared.name):
        labels = ", ".join(f"`{label}`" for label in each.labels)
        rows.append(f"| `{each.name}` | {each.kind} | {labels} | {each.help} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
