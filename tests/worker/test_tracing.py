"""A trace goes on through the worker: as W3C Trace Context alone, and as OpenTelemetry spans."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import aio_pika
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.harness.worker import ALICE, VERSION, WorkerHarness, make_command, make_report
from tests.worker.conftest import StartWorker

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Collector:
    """An OpenTelemetry collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def named(self, name: str) -> list[Span]:
        """The spans of one name."""
        return [span for span in self.spans if span.name == f"taskherd {name}"]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that the worker finds by OpenTelemetry's own variable."""
    own = Collector()
    thread = threading.Thread(target=own.server.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", own.url)
    yield own
    own.server.shutdown()
    own.server.server_close()
    thread.join()


async def publish(own: WorkerHarness, kind: str, key: str, body: dict[str, Any]) -> None:
    """Publish something that is a part of the trace."""
    exchange = await own.channel.get_exchange(f"{own.prefix}.{kind}", ensure=False)
    message = aio_pika.Message(json.dumps(body).encode(), headers={"traceparent": PARENT})
    await exchange.publish(message, key, timeout=5)


def create(task_id: uuid.UUID) -> dict[str, Any]:
    """A create that nobody waits for the answer of."""
    wanted = {"owner_id": str(ALICE), "template_version_id": str(VERSION), "input": "Fix the flaky test"}
    return make_command("task.create", task_id, **wanted)


async def test_a_trace_is_passed_on_without_opentelemetry(harness: WorkerHarness) -> None:
    """The event that a command leads to carries the trace that the command came with; one without has none."""
    await harness.create()
    await harness.until(lambda: len(harness.messages) == 1)
    assert "traceparent" not in (harness.messages[0].headers or {})
    await publish(harness, "commands", "task.create", create(uuid.uuid4()))
    await harness.until(lambda: len(harness.messages) == 2)
    assert harness.messages[1].headers["traceparent"] == PARENT


async def test_spans_tell_what_became_of_a_command_and_of_a_report(
    start_worker: StartWorker, collector: Collector
) -> None:
    """Command, commit and publish are spans of the caller's trace; a batch is linked to the reports' traces."""
    task_id = uuid.uuid4()
    async with start_worker(tracing="otlp") as own:
        await publish(own, "commands", "task.create", create(task_id))
        await own.until(lambda: own.document(task_id))
        await publish(
            own, "reports", str(task_id), make_report("app.status", task_id, state="working", message="Reading")
        )
        await own.until(lambda: own.state(task_id).get("message") == "Reading")
        told = [str((message.headers or {})["traceparent"]) for message in own.messages]
    async with asyncio.timeout(10):
        while not collector.named("publish"):  # noqa: ASYNC110 - it is another thread that listens
            await asyncio.sleep(0.02)

    (command,) = collector.named("command")
    assert command.trace_id.hex() == TRACE
    assert command.parent_span_id.hex() == PARENT.split("-")[2]
    assert any(span.parent_span_id == command.span_id for span in collector.named("commit"))
    batches = [span for span in collector.named("batch") if [link.trace_id.hex() for link in span.links] == [TRACE]]
    assert len(batches) == 1
    assert any(span.parent_span_id == batches[0].span_id for span in collector.named("commit"))
    published = collector.named("publish")
    assert {link.span_id for span in published for link in span.links} >= {command.span_id, batches[0].span_id}
    senders = {(span.trace_id.hex(), span.span_id.hex()) for span in published}
    assert {tuple(each.split("-")[1:3]) for each in told} <= senders


async def test_a_collector_that_is_away_costs_spans_and_nothing_else(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens where the spans go: the worker works, and leaves in time."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    async with start_worker(tracing="otlp") as own:
        await own.active()
