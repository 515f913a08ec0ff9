"""Creates by batch: 1,000 tasks in one request, and what others wait while such batches are executed."""

from __future__ import annotations

import asyncio
import json
import statistics
import threading
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from benchmarks.harness import http_load
from benchmarks.harness.http_load import LoadPlan, request
from benchmarks.harness.run import Row
from benchmarks.harness.seed import VERSION
from taskherd.api.command_slots import QUIET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.harness.http_load import LoadResult
    from benchmarks.harness.run import Run

TASKS: Final = 1_000
BATCHES: Final = 3
"""Number of batches, one after the other, in each round."""
_PAUSE: Final = 3 * QUIET
"""Seconds before them: after a single create a batch has only a few commands in flight for ``QUIET``."""
_TIMEOUT: Final = 120.0
_ATTEMPTS: Final = 5
_PATH: Final = "/api/v2/task-batches"


class BatchMeasurement:
    """Measurements of batches, to be compared with single creates by the peer and by ourselves."""

    def __init__(self, run: Run, ports: tuple[int, int], tokens: tuple[str, str]) -> None:
        """Create the measurement.

        Args:
            run: of the benchmarks.
            ports: that of the API which gets the batches, and that of another process of it.
            tokens: that of the user who posts batches, and another user's.
        """
        self._run = run
        self._port, self._other_port = ports
        self._token, self._other = tokens
        self._rates: list[float] = []
        self._alone: list[LoadResult] = []
        self._beside: list[LoadResult] = []
        self._beside_other: list[LoadResult] = []

    async def measure(self, seconds: float) -> None:
        """Measure batches alone, a user's single creates alone, and these while another user posts batches."""
        await asyncio.sleep(_PAUSE)
        for _ in range(BATCHES):
            took = await asyncio.to_thread(_post_batch, self._port, self._token)
            self._rates.append(TASKS / took)
            self._run.record(f"a batch of {TASKS:,} creates: {took:.2f} s, {TASKS / took:,.0f}/s")
        plan = self._single_creates(self._port, seconds)
        self._alone.append(await asyncio.to_thread(http_load.run, plan))
        self._run.record(f"another user's POST of a task, alone: {self._alone[-1].description}")
        with _posting_batches(self._port, self._token):
            self._beside.append(await asyncio.to_thread(http_load.run, plan))
        self._run.record(f"another user's POST of a task, beside batches: {self._beside[-1].description}")
        with _posting_batches(self._port, self._token):
            self._beside_other.append(
                await asyncio.to_thread(http_load.run, self._single_creates(self._other_port, seconds))
            )
        self._run.record(f"the same through another process of the API: {self._beside_other[-1].description}")

    def _single_creates(self, port: int, seconds: float) -> LoadPlan:
        """Return the other user's creates, one at a time."""
        return LoadPlan(port, [request("POST", "/api/v2/tasks/me", self._other, body=_body())], 1, seconds, 201)

    def add_rows(self, peer_name: str, peer_rate: float) -> None:
        """Add the rows; ``peer_rate`` is that of single creates by the peer, one at a time."""
        rate = statistics.median(self._rates)
        what = f"{TASKS:,} creates in one request"
        cells = f"{rate:,.0f}/s", f"{peer_name}, 1 at a time", f"{peer_rate:,.0f}/s"
        self._run.rows.append(Row(what, *cells, rate / peer_rate, 10.0))
        alone = statistics.median(one.p99 for one in self._alone)
        for what, loads in (
            ("POST of a task beside another user's batches, p99", self._beside),
            ("the same through another process of the API, p99", self._beside_other),
        ):
            beside = statistics.median(one.p99 for one in loads)
            cells = f"{beside * 1e3:.1f} ms", "alone", f"{alone * 1e3:.1f} ms"
            self._run.rows.append(Row(what, *cells, beside / alone, 3.0, at_most=True))


def _body() -> str:
    return json.dumps({"template_version_id": str(VERSION), "input": "Find out why the last step fails"})


def _post_batch(port: int, token: str) -> float:
    """Create 1,000 tasks, and return the seconds until all are confirmed; raise ``RuntimeError`` if one is refused.

    What was not confirmed in time is repeated with the same key, as clients do.
    """
    tasks = [{"template_version_id": str(VERSION), "input": f"Find out why step {step} fails"} for step in range(TASKS)]
    headers = {"Coder-Session-Token": token, "Idempotency-Key": str(uuid4())}
    connection = HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
    body: dict[str, Any] = {}
    began = time.perf_counter()
    for _ in range(_ATTEMPTS):
        connection.request("POST", _PATH, json.dumps({"tasks": tasks}), headers)
        body = json.loads(connection.getresponse().read())
        if body.get("created") == TASKS:
            break
    took = time.perf_counter() - began
    connection.close()
    if body.get("created") != TASKS:
        failed = [result for result in body.get("results", [body]) if "task" not in result]
        message = f"{len(failed)} creates of a batch failed: {json.dumps(failed[:1])}"
        raise RuntimeError(message)
    return took


@contextmanager
def _posting_batches(port: int, token: str) -> Iterator[None]:
    """Post one batch after the other during the block."""
    stopping = threading.Event()
    failures: list[Exception] = []

    def post() -> None:
        try:
            while not stopping.is_set():
                _post_batch(port, token)
        except Exception as error:  # noqa: BLE001 - raised in the caller's thread
            failures.append(error)

    thread = threading.Thread(target=post)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(_TIMEOUT)
    if failures:
        raise failures[0]
