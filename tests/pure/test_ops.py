"""The operations port, on a real socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from taskherd.errors import Misconfigured, Unavailable
from taskherd.observability.metrics import Metrics
from taskherd.observability.ops import MAX_CONNECTIONS, MAX_HEADER, OpsServer
from taskherd.observability.readiness import Readiness

HOST = "127.0.0.1"
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """Return what is received until the server closes the connection, or nothing if it resets it."""
    try:
        return await asyncio.wait_for(reader.read(), 30)
    except ConnectionError:
        return b""


@dataclass
class Ops:
    """A running operations port."""

    port: int
    metrics: Metrics
    readiness: Readiness

    async def send(self, raw: bytes) -> bytes:
        """Send ``raw`` and return everything that is received."""
        reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            writer.write(raw)
            return await read_all(reader)
        finally:
            writer.close()

    async def get(self, path: str, method: str = "GET", headers: str = "") -> tuple[int, str, bytes]:
        """Send a request and return status, head and body of the response."""
        raw = await self.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
        head, _, body = raw.partition(b"\r\n\r\n")
        return int(head.split()[1]), head.decode(), body


@pytest.fixture
async def ops() -> AsyncIterator[Ops]:
    """Yield an operations port on a free port, with one condition, that soon drops a client that sends nothing."""
    async with running_ops(read_timeout=0.3) as running:
        yield running


@pytest.fixture
async def patient_ops() -> AsyncIterator[Ops]:
    """Yield an operations port that drops no client and gives up no check during a test."""
    async with running_ops(read_timeout=600, check_timeout=600) as running:
        yield running


@asynccontextmanager
async def running_ops(read_timeout: float, check_timeout: float = 0.2) -> AsyncIterator[Ops]:
    """Run an operations port while the block runs."""
    metrics, readiness = Metrics(), Readiness("consumers", timeout=check_timeout)
    server = OpsServer(metrics, readiness, read_timeout=read_timeout)
    port = await server.start(HOST, 0)
    yield Ops(port, metrics, readiness)
    await server.close()


async def test_a_live_process_need_not_be_ready(ops: Ops) -> None:
    """A process whose database is unavailable is alive: restarting it would not help."""
    ops.readiness.set_failed("consumers", "database away")
    assert (await ops.get("/livez"))[0] == 200
    assert (await ops.get("/readyz"))[0] == 503


async def test_ready_if_all_conditions_and_checks_are_ok(patient_ops: Ops) -> None:
    """The process is ready when every condition is set and every check succeeds, not before."""
    ops = patient_ops
    assert (await ops.get("/readyz"))[0] == 503

    async def succeed() -> None:
        await asyncio.sleep(0)

    ops.readiness.set_ok("consumers")
    ops.readiness.add_check("database", succeed)
    ops.readiness.add_check("broker", lambda: None)
    status, _, body = await ops.get("/readyz")
    assert status == 200
    checks = {name: {"ok": True} for name in ("consumers", "database", "broker")}
    assert json.loads(body) == {"ready": True, "checks": checks}


async def test_each_failed_check_has_its_reason(ops: Ops) -> None:
    """A check that fails, raises, hangs or has a bug reports its own reason, and the others are still reported."""
    finished = asyncio.Event()

    async def hang() -> None:
        await finished.wait()

    def unavailable() -> str | None:
        raise Unavailable("no route to the broker")

    def broken() -> str | None:
        raise ValueError("postgresql://u:s3cr3t@db/x")

    ops.readiness.set_ok("consumers")
    ops.readiness.add_check("schema", lambda: "not at head")
    ops.readiness.add_check("broker", unavailable)
    ops.readiness.add_check("database", hang)
    ops.readiness.add_check("odd", broken)
    status, _, body = await ops.get("/readyz")
    reasons = {name: check.get("reason") for name, check in json.loads(body)["checks"].items()}
    assert status == 503
    assert reasons == {
        "consumers": None,
        "schema": "not at head",
        "broker": "no route to the broker",
        "database": "no answer within 0.2 s",
        "odd": "failed with ValueError",
    }
    finished.set()


async def test_a_hanging_check_runs_once_at_a_time(ops: Ops) -> None:
    """While a check hangs, further requests start no second run and do not cancel the first."""
    finished, started = asyncio.Event(), 0

    async def hang() -> str | None:
        nonlocal started
        started += 1
        await finished.wait()
        return None

    ops.readiness.add_check("database", hang)
    await asyncio.gather(*(ops.readiness.reasons() for _ in range(20)))
    assert started == 1
    finished.set()
    assert (await ops.readiness.reasons())["database"] is None


async def test_metrics_are_scraped(ops: Ops) -> None:
    """A scrape returns the metrics in the requested format."""
    ops.metrics.events_published.inc(7)
    status, head, body = await ops.get("/metrics")
    assert status == 200
    assert "text/plain" in head
    assert b"taskherd_events_published_total 7.0" in body
    _, head, body = await ops.get("/metrics", headers="Accept: application/openmetrics-text; version=1.0.0\r\n")
    assert "application/openmetrics-text" in head
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/metrics/../etc/passwd", 404), ("POST", "/livez", 405), ("GET", "/livez?x=1", 200)],
)
async def test_other_requests_are_rejected(ops: Ops, method: str, path: str, status: int) -> None:
    """Requests for other paths or with other methods are rejected."""
    assert (await ops.get(path, method))[0] == status


async def test_head_has_no_body(ops: Ops) -> None:
    """The response to HEAD is that to GET without the body (RFC 9110, section 9.3.2)."""
    status, head, body = await ops.get("/livez", "HEAD")
    assert (status, body) == (200, b"")
    assert "content-length: 3" in head.lower()


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 3 * MAX_HEADER + b"\r\n\r\n", b"HTTP/1.1 431"),
        (b"\x16\x03\x01\x00\x00\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET /livez\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET /livez HTTP/1.1\r\n", b"HTTP/1.1 408"),
        (b"", b"HTTP/1.1 408"),
    ],
)
async def test_a_bad_client_cannot_block_the_port(ops: Ops, raw: bytes, answer: bytes) -> None:
    """A request that is too large, not HTTP, or not complete in time gets an error, and the next one is served."""
    assert (await ops.send(raw)).startswith(answer)
    assert (await ops.get("/livez"))[0] == 200


async def test_the_number_of_connections_is_limited(patient_ops: Ops) -> None:
    """Connections above the limit are dropped; one that is closed makes room."""
    opened = [await asyncio.open_connection(HOST, patient_ops.port) for _ in range(MAX_CONNECTIONS)]
    assert await patient_ops.send(LIVEZ) == b""
    opened.pop()[1].close()
    async with asyncio.timeout(10):
        while not (response := await patient_ops.send(LIVEZ)):
            continue  # the server has not seen yet that the connection is closed
    assert response.startswith(b"HTTP/1.1 200")
    for _, writer in opened:
        writer.close()


async def test_idle_connections_make_room(ops: Ops) -> None:
    """Connections that send nothing are closed, however many there are, and then a request is served."""
    opened = [await asyncio.open_connection(HOST, ops.port) for _ in range(MAX_CONNECTIONS)]
    for reader, writer in opened:
        assert (await read_all(reader)).startswith(b"HTTP/1.1 408")
        writer.close()
    assert (await ops.get("/livez"))[0] == 200


async def test_an_unavailable_port_is_a_configuration_error(ops: Ops) -> None:
    """If the port or address cannot be used, the error names the setting and the expected value."""
    with pytest.raises(Misconfigured) as caught:
        await OpsServer(Metrics(), Readiness()).start(HOST, ops.port)
    assert caught.value.setting == "TASKHERD_OPS_PORT"
    assert str(ops.port) in caught.value.expected
    with pytest.raises(Misconfigured) as caught:
        await OpsServer(Metrics(), Readiness()).start("203.0.113.1", 0)
    assert caught.value.setting == "TASKHERD_OPS_HOST"
