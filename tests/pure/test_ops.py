"""The operations port answers on a real socket, whatever the worker is going through."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from taskherd.errors import Misconfigured, Unavailable
from taskherd.observability.metrics import Metrics
from taskherd.observability.ops import MAX_CONNECTIONS, MAX_HEADER, OpsServer
from taskherd.observability.readiness import Readiness

HOST = "127.0.0.1"


@dataclass
class Ops:
    """A running operations port."""

    port: int
    metrics: Metrics
    readiness: Readiness

    async def send(self, raw: bytes) -> bytes:
        """Everything that comes back for `raw`."""
        reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            writer.write(raw)
            return await asyncio.wait_for(reader.read(), 10)
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def get(self, path: str, method: str = "GET", headers: str = "") -> tuple[int, str, bytes]:
        """Status, head and body of the answer to a request."""
        raw = await self.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
        head, _, body = raw.partition(b"\r\n\r\n")
        return int(head.split()[1]), head.decode(), body


@pytest.fixture
async def ops() -> AsyncIterator[Ops]:
    """An operations port on a free port, with one condition."""
    metrics, readiness = Metrics(), Readiness("consumers", timeout=0.2)
    server = OpsServer(metrics, readiness, read_timeout=0.3)
    port = await server.start(HOST, 0)
    yield Ops(port, metrics, readiness)
    await server.close()


async def test_alive_is_not_ready(ops: Ops) -> None:
    """A process whose database is away is alive all the same: killing it would help nobody."""
    ops.readiness.clear("consumers", "database away")
    assert (await ops.get("/livez"))[0] == 200
    assert (await ops.get("/readyz"))[0] == 503


async def test_ready_when_all_is_well(ops: Ops) -> None:
    """Ready means that every condition is set and every check finds nothing; before that, not."""
    assert (await ops.get("/readyz"))[0] == 503

    async def fine() -> None:
        await asyncio.sleep(0)

    ops.readiness.set("consumers")
    ops.readiness.check("database", fine)
    ops.readiness.check("broker", lambda: None)
    status, _, body = await ops.get("/readyz")
    assert status == 200
    checks = {name: {"ok": True} for name in ("consumers", "database", "broker")}
    assert json.loads(body) == {"ready": True, "checks": checks}


async def test_each_failing_check_says_why(ops: Ops) -> None:
    """A check that finds something, is away, hangs or breaks gives its own reason and never hides the others'."""
    finished = asyncio.Event()

    async def hang() -> None:
        await finished.wait()

    def away() -> str | None:
        raise Unavailable("no route to the broker")

    def broken() -> str | None:
        raise ValueError("postgresql://u:s3cr3t@db/x")

    ops.readiness.set("consumers")
    ops.readiness.check("schema", lambda: "not at head")
    ops.readiness.check("broker", away)
    ops.readiness.check("database", hang)
    ops.readiness.check("odd", broken)
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


async def test_a_hanging_check_is_asked_once_at_a_time(ops: Ops) -> None:
    """However often somebody asks while a check hangs, only one runs, and it is not cancelled."""
    finished, started = asyncio.Event(), 0

    async def hang() -> str | None:
        nonlocal started
        started += 1
        await finished.wait()
        return None

    ops.readiness.check("database", hang)
    await asyncio.gather(*(ops.readiness.reasons() for _ in range(20)))
    assert started == 1
    finished.set()
    assert (await ops.readiness.reasons())["database"] is None


async def test_metrics_are_scraped(ops: Ops) -> None:
    """A scrape gives the metrics in the format that was asked for."""
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
async def test_other_requests_are_refused(ops: Ops, method: str, path: str, status: int) -> None:
    """What is not one of the three paths, or does more than read, is refused."""
    assert (await ops.get(path, method))[0] == status


async def test_head_has_no_body(ops: Ops) -> None:
    """HEAD answers as GET does, without the body (RFC 9110, section 9.3.2)."""
    status, head, body = await ops.get("/livez", "HEAD")
    assert (status, body) == (200, b"")
    assert "content-length: 3" in head.lower()


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 3 * MAX_HEADER + b"\r\n\r\n", b"HTTP/1.1 431"),
        (b"\x16\x03\x01\x00\x00\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET /livez\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET /livez HTTP/1.1\r\n", b""),
        (b"", b""),
    ],
)
async def test_a_stranger_can_not_hold_the_port(ops: Ops, raw: bytes, answer: bytes) -> None:
    """Too much, too little, too slow or no HTTP at all: answered or dropped in time, and the port lives on."""
    assert (await ops.send(raw)).startswith(answer)
    assert (await ops.get("/livez"))[0] == 200


async def test_connections_are_bounded(ops: Ops) -> None:
    """Connections above the bound are dropped, and those that say nothing make room again."""
    opened = [await asyncio.open_connection(HOST, ops.port) for _ in range(MAX_CONNECTIONS)]
    assert await ops.send(b"GET /livez HTTP/1.1\r\n\r\n") == b""
    for reader, writer in opened:
        with pytest.raises(ConnectionError):  # noqa: PT012 - the reset may come at either call
            await asyncio.wait_for(reader.read(), 10)
            raise ConnectionResetError
        writer.close()
    assert (await ops.get("/livez"))[0] == 200


async def test_a_port_that_is_taken_is_named(ops: Ops) -> None:
    """A port or address that can't be had refuses the start, naming the setting and what was expected."""
    with pytest.raises(Misconfigured) as caught:
        await OpsServer(Metrics(), Readiness()).start(HOST, ops.port)
    assert caught.value.setting == "TASKHERD_OPS_PORT"
    assert str(ops.port) in caught.value.expected
    with pytest.raises(Misconfigured) as caught:
        await OpsServer(Metrics(), Readiness()).start("203.0.113.1", 0)
    assert caught.value.setting == "TASKHERD_OPS_HOST"
