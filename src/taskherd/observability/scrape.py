"""Read a scrape of ``/metrics``: which process answers, and whether the metrics of the alerts are in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client import Metric

PROCESS: Final = "taskherd_process_info"
BUILD: Final = "taskherd_build_info"

_EVERY_PROCESS: Final = frozenset({"taskherd_broker_up", "taskherd_failpoint_armed", "taskherd_reconnects_total"})
ALERT_INPUTS: Final[Mapping[str, frozenset[str]]] = {
    "worker": _EVERY_PROCESS
    | {
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "taskherd_agent_events_total",
        "taskherd_agent_exits_total",
        "taskherd_agents",
        "taskherd_agents_stalled",
        "taskherd_batch_failures_total",
        "taskherd_batch_seconds_bucket",
        "taskherd_commands_total",
        "taskherd_database_up",
        "taskherd_dead_lettered_total",
        "taskherd_deletes_retried_total",
        "taskherd_drained",
        "taskherd_events_published_total",
        "taskherd_index_lag_seconds",
        "taskherd_maintenance_failures_total",
        "taskherd_mass_silence_held",
        "taskherd_outbox_oldest_seconds",
        "taskherd_parked_reports",
        "taskherd_probe_seconds_bucket",
        "taskherd_publish_lag_seconds_bucket",
        "taskherd_reports_total",
        "taskherd_requests_given_up_total",
        "taskherd_sweeps_total",
        "taskherd_tasks",
    },
    "api": _EVERY_PROCESS
    | {
        "taskherd_api_crashes_total",
        "taskherd_api_requests_total",
        "taskherd_api_seconds_bucket",
        "taskherd_api_sign_in_failures_total",
        "taskherd_api_standby_lag_seconds",
    },
    "runner": _EVERY_PROCESS
    | {
        "taskherd_runner_output_lost_bytes_total",
        "taskherd_runner_requests_total",
        "taskherd_runner_waiting_bytes",
    },
}
"""The metrics that the rules in ``deploy/prometheus/rules`` read, by the process that exposes them; a test compares."""

_EMPTY_UNTIL_USED: Final = frozenset({"taskherd_agents"})
"""Metrics whose label values come from use; without any, declared is enough."""
_SUFFIXES: Final = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


@dataclass(frozen=True, slots=True)
class Scrape:
    """What a scrape says about its process; ``role`` and ``installation`` are empty if it does not identify itself."""

    role: str
    installation: str
    version: str
    declared: frozenset[str]
    samples: frozenset[str]

    @property
    def is_taskherd(self) -> bool:
        """True if a process of taskherd answered, of any installation."""
        return bool(self.version)

    def missing_alert_inputs(self) -> tuple[str, ...]:
        """Return the metrics that the alerts for this role read and that this process does not expose, sorted."""
        present = self.samples | (self.declared & _EMPTY_UNTIL_USED)
        return tuple(sorted(ALERT_INPUTS.get(self.role, frozenset()) - present))


def parse(text: str) -> Scrape:
    """Parse a scrape in Prometheus' text format. Raise ``ValueError`` if it is not one."""
    families = tuple(text_string_to_metric_families(text))
    samples = {sample.name: sample.labels for family in families for sample in family.samples}
    process, build = samples.get(PROCESS, {}), samples.get(BUILD, {})
    return Scrape(
        role=process.get("role", ""),
        installation=process.get("installation", ""),
        version=build.get("version", ""),
        declared=frozenset(_names(families)),
        samples=frozenset(samples),
    )


def _names(families: Iterable[Metric]) -> Iterable[str]:
    """Yield the names that queries use for these families."""
    for family in families:
        for suffix in _SUFFIXES.get(family.type, ("",)):
            yield family.name + suffix
