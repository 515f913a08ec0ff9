"""Traces continue through the worker: as W3C Trace Context without OpenTelemetry, and as OpenTelemetry spans."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import aio_pika
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.harness.worker import TIMEOUT, WorkerHarness, make_create, make_report, running_worker
from tests.worker.conftest import StartWorker

TRACE = "0af7651916cd43dd8448eb211c80319c"
GRACE = 20.0
"""Seconds that a worker may take to end."""
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Collector:
    """An OpenTelemetry collector that keeps the spans received."""

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
                """Log nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def named(self, name: str) -> list[Span]:
        """Return the spans with this name."""
        return [span for span in self.spans if span.name == f"taskherd {name}"]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Yield a collector that the worker finds by OpenTelemetry's environment variable."""
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    yield collector
    collector.server.shutdown()
    collector.server.server_close()
    thread.join()


async def publish(harness: WorkerHarness, kind: str, key: str, body: dict[str, Any]) -> None:
    """Publish a message that belongs to the trace."""
    exchange = await harness.channel.get_exchange(f"{harness.prefix}.{kind}", ensure=False)
    message = aio_pika.Message(json.dumps(body).encode(), headers={"traceparent": PARENT})
    await exchange.publish(message, key, timeout=30)


async def test_a_trace_is_passed_on_without_opentelemetry(harness: WorkerHarness) -> None:
    """The event of a command carries the command's trace; a command without a trace leads to an event without one."""
    await harness.create()
    await harness.until(lambda: len(harness.messages) == 1)
    assert "traceparent" not in (harness.messages[0].headers or {})
    await publish(harness, "commands", "task.create", make_create())
    await harness.until(lambda: len(harness.messages) == 2)
    assert harness.messages[1].headers["traceparent"] == PARENT


async def test_spans_cover_a_command_and_a_report_up_to_their_events(
    start_worker: StartWorker, collector: Collector
) -> None:
    """Command, commit and publish are spans of the caller's trace; a batch is linked to the reports' traces."""
    task_id = uuid.uuid4()
    async with start_worker(tracing="otlp") as harness:
        await publish(harness, "commands", "task.create", make_create(task_id))
        await harness.until(lambda: harness.document(task_id))
        await publish(
            harness, "reports", str(task_id), make_report("app.status", task_id, state="working", message="Reading")
        )
        await harness.until(lambda: harness.state(task_id).get("message") == "Reading")
        traceparents = [str((message.headers or {})["traceparent"]) for message in harness.messages]
    async with asyncio.timeout(30):
        while not collector.named("publish"):  # noqa: ASYNC110 - the collector runs in another thread
            await asyncio.sleep(0.02)

    (command,) = collector.named("command")
    assert command.trace_id.hex() == TRACE
    assert command.parent_span_id.hex() == PARENT.split("-")[2]
    assert any(span.parent_span_id == command.span_id for span in collector.named("commit"))
    batches = [span for span in collector.named("batch") if [link.trace_id.hex() for link in span.links] == [TRACE]]
    assert len(batches) == 1
    (commit,) = (span for span in collector.named("commit") if span.parent_span_id == batches[0].span_id)
    assert [(each.key, each.value.int_value) for each in commit.attributes] == [("taskherd.reports", 1)]
    published = collector.named("publish")
    assert {link.span_id for span in published for link in span.links} >= {command.span_id, batches[0].span_id}
    senders = {(span.trace_id.hex(), span.span_id.hex()) for span in published}
    assert {tuple(each.split("-")[1:3]) for each in traceparents} <= senders


@pytest.mark.parametrize("accepts", [True, False], ids=["a hanging collector", "no collector"])
async def test_an_unreachable_collector_costs_only_spans(
    external: WorkerHarness,
    monkeypatch: pytest.MonkeyPatch,
    accepts: bool,  # noqa: FBT001 - a parameter
) -> None:
    """The worker works, traces what it publishes, and ends within its grace time."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    loop = asyncio.get_running_loop()
    with closing(socket.socket()) as collector, ExitStack() as connected:
        collector.settimeout(0)  # as an event loop needs it
        collector.bind(("127.0.0.1", 0))
        if accepts:
            collector.listen()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.getsockname()[1]}")
        task_id = uuid.uuid4()
        async with running_worker(external, tracing="otlp", grace=GRACE) as worker:
            await publish(external, "commands", "task.create", make_create(task_id))
            await external.until(lambda: external.document(task_id))
            assert external.messages[0].headers["traceparent"]
            await external.make_active(task_id)
            if accepts:  # spans are exported, and so the worker has some to lose when it stops
                connection, _ = await asyncio.wait_for(loop.sock_accept(collector), TIMEOUT)
                connected.enter_context(closing(connection))
            worker.stop()
            stopped_at = loop.time()
        assert loop.time() - stopped_at < GRACE
