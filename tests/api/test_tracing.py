"""A trace comes in over HTTP and goes on through worker and broker."""

from __future__ import annotations

import asyncio

from tests.api.conftest import StartApi
from tests.harness.api import VERSION, ApiHarness
from tests.worker.test_tracing import PARENT, TRACE, Collector, collector  # noqa: F401 - a fixture

ASKED = {"template_version_id": str(VERSION), "input": "Fix the flaky test"}


async def test_a_requests_trace_is_passed_on_without_opentelemetry(api_harness: ApiHarness) -> None:
    """The event that a write over HTTP leads to carries the request's trace; one of a request without has none."""
    await api_harness.create()
    await api_harness.worker.until(lambda: len(api_harness.worker.messages) == 1)
    assert "traceparent" not in (api_harness.worker.messages[0].headers or {})
    made = await api_harness.alice.post("/tasks/me", json=ASKED, headers={"traceparent": PARENT})
    assert made.status_code == 201
    await api_harness.worker.until(lambda: len(api_harness.worker.messages) == 2)
    assert api_harness.worker.messages[1].headers["traceparent"] == PARENT


async def test_a_request_is_a_span_and_its_command_another_below_it(
    start_api: StartApi,
    collector: Collector,  # noqa: F811
) -> None:
    """With OpenTelemetry the request's span is the caller's child, and the worker's span of the command its own."""
    async with start_api(tracing="otlp") as own:
        assert (await own.alice.post("/tasks/me", json=ASKED, headers={"traceparent": PARENT})).status_code == 201
    async with asyncio.timeout(10):
        while not (collector.named("request") and collector.named("command")):  # noqa: ASYNC110 - another thread listens
            await asyncio.sleep(0.02)
    (request,), (command,) = collector.named("request"), collector.named("command")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT.split("-")[2])
    assert (command.trace_id.hex(), command.parent_span_id) == (TRACE, request.span_id)
