"""Read the metrics and readiness of a process, as Prometheus and a load balancer do."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from taskherd.dev import ports

_REQUEST_TIMEOUT: Final = 3.0
"""Seconds to wait for the answer of an operations port."""


@dataclass(slots=True)
class Reading:
    """Sums of a process's counters at one time; ``at`` is the monotonic time in seconds."""

    at: float = field(default_factory=monotonic)
    reports: float = 0
    events: float = 0
    dead_lettered: float = 0
    adopted: float = 0
    by_outcome: dict[str, float] = field(default_factory=dict)


class Meter:
    """The metrics of one process; ``rate`` is the reports per second between the last two readings."""

    def __init__(self, ops_port: int) -> None:
        self._base = f"http://{ports.HOST}:{ops_port}"
        self.first: Reading | None = None
        self.last = Reading()
        self.rate = 0.0

    def is_ready(self) -> bool:
        """Return whether the process reports that it is ready; blocks for up to three seconds."""
        try:
            self._get("/readyz")
        except (OSError, urllib.error.URLError):
            return False
        return True

    async def read(self) -> Reading:
        """Read the metrics and return them, or the previous reading if the process does not answer."""
        try:
            text = await asyncio.to_thread(self._get, "/metrics")
        except (OSError, urllib.error.URLError):
            return self.last
        reading = _parse(text)
        elapsed = reading.at - self.last.at
        if self.first is None:
            self.first = reading
        elif elapsed > 0:
            self.rate = (reading.reports - self.last.reports) / elapsed
        self.last = reading
        return reading

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(self._base + path, timeout=_REQUEST_TIMEOUT) as response:  # noqa: S310 - a process of the demo, over http
            return str(response.read().decode())


def _parse(text: str) -> Reading:
    reading = Reading()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            match sample.name:
                case "taskherd_reports_total":
                    reading.reports += sample.value
                    outcome = sample.labels["outcome"]
                    reading.by_outcome[outcome] = reading.by_outcome.get(outcome, 0) + sample.value
                case "taskherd_events_published_total":
                    reading.events += sample.value
                case "taskherd_dead_lettered_total":
                    reading.dead_lettered += sample.value
                case "taskherd_runner_adopted_total" if sample.labels["outcome"] == "running":
                    reading.adopted += sample.value
                case _:
                    continue
    return reading
