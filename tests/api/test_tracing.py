"""A trace that starts in an HTTP request continues in the worker and in events."""

from __future__ import annotations

import asyncio

from tests.api.conftest import StartApi
from tests.harness.api import VERSION, ApiHarness
from tests.worker.test_tracing import PARENT, TRACE, Collector, collector  # noqa: F401 - a fixture

BODY = {"template_version_id": str(VERSION), "input": "Fix the flaky test"}


async def test_a_requests_trace_is_passed_on_without_opentelemetry(api_harness: ApiHarness) -> None:
    """The event of a write over HTTP carries the trace of the request, or none if the request has none."""
    await api_harness.create()
    await api_harness.worker.until(lambda: len(api_harness.worker.messages) == 1)
    assert "traceparent" not in (api_harness.worker.messages[0].headers or {})
    created = await api_harness.alice.post("/tasks/me", json=BODY, headers={"traceparent": PARENT})
    assert created.status_code == 201
    await api_harness.worker.until(lambda: len(api_harness.worker.messages) == 2)
    assert api_harness.worker.messages[1].headers["traceparent"] == PARENT


async def test_a_request_is_a_span_with_its_command_as_child(
    start_api: StartApi,
    collector: Collector,  # noqa: F811
) -> None:
    """With OpenTelemetry the request is a child span of the caller's, and the command a child of the request."""
    async with start_api(tracing="otlp") as api_harness:
        assert (
            await api_harness.alice.post("/tasks/me", json=BODY, headers={"traceparent": PARENT})
        ).status_code == 201
    async with asyncio.timeout(30):
        while not (collector.named("request") and collector.named("command")):  # noqa: ASYNC110 - another thread collects them
            await asyncio.sleep(0.02)
    (request,), (command,) = collector.named("request"), collector.named("command")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT.split("-")[2])
    assert (command.trace_id.hex(), command.parent_span_id) == (TRACE, request.span_id)
