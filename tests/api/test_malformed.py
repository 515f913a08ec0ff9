"""Malformed requests: each gets a JSON error, sizes and times are limited, and the server keeps working."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from taskherd import http_protocol
from tests.api.conftest import StartApi
from tests.harness.api import TIMEOUT, VERSION, ApiHarness

NOT_FOUND = {"message": "Route not found."}


async def raw(api_harness: ApiHarness, sent: bytes, *, then: bytes = b"") -> tuple[int, dict[str, str], Any]:
    """Send bytes on a new connection and return status, headers and JSON body of the response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api_harness.api.port)
    try:
        writer.write(sent)
        async with asyncio.timeout(TIMEOUT):
            head = await reader.readuntil(b"\r\n\r\n")
            if then:
                writer.write(then)
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            return int(first.split()[1]), headers, json.loads(body) if body else None
    finally:
        writer.close()


async def test_unknown_paths_and_methods(api_harness: ApiHarness) -> None:
    """An unknown path is a JSON 404, with or without a token; a wrong method a JSON 405 that names the right ones."""
    for client in (api_harness.alice, api_harness.anonymous):
        for path in (
            "/api/v2/nothing",
            "/api/v2/tasks/",
            "/api/v3/tasks",
            "/api",
            "/api/v2/tasks/a/b/c/d",
            "/livez",
        ):
            response = await client.get(api_harness.base + path)
            assert (response.status_code, response.json()) == (404, NOT_FOUND), path
            assert response.headers["content-type"] == "application/json"
        wrong = await client.put(f"{api_harness.base}/api/v2/tasks/me/x")
        assert (wrong.status_code, wrong.headers["Allow"]) == (405, "DELETE, GET, HEAD")
        assert wrong.json()["message"] == "Method not allowed."
        fixed = await client.options(f"{api_harness.base}/api/v2/tasks/watch")
        assert (fixed.status_code, fixed.headers["Allow"]) == (405, "GET, HEAD")
    head = await api_harness.alice.head("/tasks")
    assert (head.status_code, head.content) == (200, b"")


async def test_a_browser_at_an_unknown_address_gets_a_page(api_harness: ApiHarness) -> None:
    """Who reads HTML gets the document of the board, which says so; below ``/api`` and ``/assets`` nobody does."""
    base, accepted = api_harness.base, {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "If-None-Match": "*"}
    for path in ("/nonsense", "/tasks/alice", "/apis", "/new/x?prompt=y"):
        response = await api_harness.anonymous.get(base + path, headers=accepted)
        assert (response.status_code, response.headers["content-type"]) == (404, "text/html; charset=utf-8"), path
        assert response.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert "<title>Not found · taskherd</title>" in response.text
    for path in ("/api", "/api/v2/nothing", "/assets", "/assets/x"):
        response = await api_harness.anonymous.get(base + path, headers=accepted)
        assert (response.status_code, response.json()) == (404, NOT_FOUND), path
    posted = await api_harness.anonymous.post(base + "/nonsense", headers=accepted)
    assert (posted.status_code, posted.json()) == (404, NOT_FOUND)
    for accept in ("*/*", "application/json"):
        response = await api_harness.anonymous.get(base + "/nonsense", headers={"Accept": accept})
        assert (response.status_code, response.json()) == (404, NOT_FOUND), accept


async def test_no_header_names_the_server(api_harness: ApiHarness) -> None:
    """No response has the header by which clients compare versions, or one that names the software."""
    for path in ("/tasks", "/nothing"):
        headers = (await api_harness.alice.get(path)).headers
        assert not {"x-coder-build-version", "server", "access-control-allow-origin"} & set(headers)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Request body must be valid JSON."),
        (b"{", "Request body must be valid JSON."),
        (b"[]", "Request body must be valid JSON."),
        (b"null", "Request body must be valid JSON."),
        (b'"x"', "Request body must be valid JSON."),
        (b"\xff\xfe", "Request body must be valid JSON."),
        (b'{"input": "\\ud800"}', "Request body must be valid JSON."),
        (b'{"input": NaN}', "Request body must be valid JSON."),
        (b"[" * 100_000, "Request body must be valid JSON."),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "Request body must be valid JSON."),
        (b'{"input": ["x"]}', "Validation failed."),
    ],
)
async def test_an_invalid_body_is_rejected(api_harness: ApiHarness, body: bytes, message: str) -> None:
    """Every invalid body gets a 400 with a message."""
    response = await api_harness.alice.post("/tasks/me", content=body)
    assert (response.status_code, response.json()["message"]) == (400, message)


async def test_a_body_over_the_limit_is_rejected(api_harness: ApiHarness) -> None:
    """A body of more than 1 MiB is rejected before it is parsed, with or without a Content-Length."""
    token = api_harness.tokens["alice"]
    head = f"POST /api/v2/tasks/me HTTP/1.1\r\nHost: x\r\nCoder-Session-Token: {token}\r\n".encode()
    status, headers, body = await raw(api_harness, head + b"Content-Length: 1048577\r\n\r\n")
    assert (status, body["message"]) == (413, "Request body is too large.")
    assert headers["content-type"] == "application/json"

    async def endless() -> Any:
        for _ in range(80):
            yield b" " * 65_536

    response = await api_harness.alice.post("/tasks/me", content=endless())
    assert response.status_code == 413
    below_limit = json.dumps({"template_version_id": str(VERSION), "input": "x" * 200_000, "more": "y" * 800_000})
    assert (await api_harness.alice.post("/tasks/me", content=below_limit)).status_code == 201


def post(port: int, token: str, size: int, headers: dict[str, str]) -> tuple[int, str]:
    """Post a body of this size as ``urllib`` and ``requests`` do, all of it before the response is read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        sent = {"Coder-Session-Token": token, "Content-Length": str(size), **headers}
        parts = (b" " * min(65_536, size - start) for start in range(0, size, 65_536))
        connection.request("POST", "/api/v2/tasks/me", body=parts, headers=sent)
        response = connection.getresponse()
        return response.status, json.loads(response.read())["message"]
    finally:
        connection.close()


async def test_a_client_that_sends_all_of_a_rejected_body_reads_why(api_harness: ApiHarness) -> None:
    """The connection stays open until the client has sent its body: a reset would take the response from it."""
    token, port = api_harness.tokens["alice"], api_harness.api.port
    too_large = (413, "Request body is too large.")
    for size in (2 * 1024 * 1024, 64 * 1024 * 1024):
        for headers in ({}, {"Connection": "close"}):
            assert await asyncio.to_thread(post, port, token, size, headers) == too_large
    signed_out = await asyncio.to_thread(post, port, "x", 4 * 1024 * 1024, {"Connection": "close"})
    assert signed_out[0] == 401


async def test_a_rejected_body_without_end_is_cut_off(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read after the response is limited in size and in time."""
    token = api_harness.tokens["alice"]
    head = f"POST /api/v2/tasks/me HTTP/1.1\r\nHost: x\r\nCoder-Session-Token: {token}\r\n"
    head += "Content-Length: 999999999\r\n\r\n"
    for limit in ("MAX_DISCARD", "DISCARD_TIMEOUT"):
        with monkeypatch.context() as patch:
            patch.setattr(http_protocol, limit, 1)
            reader, writer = await asyncio.open_connection("127.0.0.1", api_harness.api.port)
            writer.write(head.encode())
            async with asyncio.timeout(TIMEOUT):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
                if limit == "MAX_DISCARD":
                    writer.write(b"xx")
                with suppress(ConnectionError):
                    await reader.read()
            writer.close()


async def test_bytes_that_are_not_http(api_harness: ApiHarness) -> None:
    """Bytes that are not HTTP, and a head over the limit, get a JSON error, and the connection is closed."""
    for sent, expected in (
        (b"\x16\x03\x01 nonsense\r\n\r\n", 400),
        (b"GET /api/v2/tasks HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (b"GET /api/v2/tasks HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /api/v2/tasks HTTP/1.1\r\nHost: x\r\n" + b"A: x\r\n" * 20_000 + b"\r\n", 431),
        (b"GET /api/v2/tasks?" + b"x" * 70_000, 431),
    ):
        status, headers, body = await raw(api_harness, sent)
        assert (status, headers["content-type"], headers["connection"]) == (expected, "application/json", "close")
        assert body["message"]
    assert (await api_harness.alice.get("/tasks")).status_code == 200


async def test_a_slow_request_times_out(start_api: StartApi) -> None:
    """A head or a body that does not arrive in time gets a 408, so a slow client cannot hold a connection."""
    async with start_api(api_read_timeout=0.5) as api_harness:
        status, _, body = await raw(api_harness, b"GET /api/v2/tasks HTTP/1.1\r\nHost: x\r\nSlow: ")
        assert (status, body["message"]) == (408, "Request header did not arrive in time.")
        assert (await raw(api_harness, b""))[0] == 408
        head = f"POST /api/v2/tasks/me HTTP/1.1\r\nHost: x\r\nCoder-Session-Token: {api_harness.tokens['alice']}\r\n"
        status, _, body = await raw(api_harness, head.encode() + b'Content-Length: 10\r\n\r\n{"a')
        assert (status, body["message"]) == (408, "Request body did not arrive in time.")


_HEADERS = {
    "ETag",
    "Retry-After",
    "X-Taskherd-Answered",
    "X-Taskherd-LSN",
    "X-Taskherd-Queued",
    "X-Taskherd-Timed-Out",
    "X-Taskherd-Truncated",
}


async def test_cors_origins(start_api: StartApi) -> None:
    """Pages of the configured origins may call the API and read its headers, others may not."""
    async with start_api(api_cors_origins="https://a.example, https://b.example") as api_harness:
        for origin, allowed in (("https://b.example", True), ("https://evil.example", False)):
            response = await api_harness.alice.get("/tasks", headers={"Origin": origin})
            assert (response.headers.get("access-control-allow-origin") == origin) is allowed
            exposed = response.headers.get("access-control-expose-headers", "")
            assert set(exposed.split(", ")) == _HEADERS
            asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            assert ((await api_harness.anonymous.options("/tasks/me", headers=asks)).status_code == 200) is allowed


async def test_an_internal_error_reveals_nothing(api_harness: ApiHarness, capsys: pytest.CaptureFixture[str]) -> None:
    """An internal error is a JSON 500 without details, and is counted."""
    await api_harness.worker.database.execute("ALTER TABLE tasks RENAME COLUMN updated_at TO hidden_secret")
    response = await api_harness.alice.get("/tasks")
    assert (response.status_code, response.json()) == (500, {"message": "An internal server error occurred."})
    assert api_harness.api.metrics.registry.get_sample_value("taskherd_api_crashes_total") == 1
    await api_harness.worker.database.execute("ALTER TABLE tasks RENAME COLUMN hidden_secret TO updated_at")
    assert (await api_harness.alice.get("/tasks")).status_code == 200
    capsys.readouterr()


def malformed(dice: Random, token: str) -> bytes:
    """Return one malformed request: a valid one with changed bytes, strange paths or strange bodies."""
    method = dice.choice(["GET", "POST", "PATCH", "DELETE", "PUT", "BREW", "OPTIONS", "get", ""])
    parts = [
        "me",
        "alice",
        "%00",
        "%ff",
        "..",
        "%2e%2e",
        "a b",
        "\u00e9",
        "x" * 3000,
        "",
        "{task}",
        "'--",
        "%",
        "0" * 32,
    ]
    path = "/".join(
        ["", "api", dice.choice(["v2", "experimental", "v9"]), "tasks", *dice.choices(parts, k=dice.randrange(4))]
    )
    query = dice.choice(
        ["", "?q=", "?q=owner:", "?limit=-1", "?after=%00", "?" + "a&" * 300, "?q=%ff%fe", "?q=" + '"' * 99]
    )
    body = dice.choice([b"", b"{", b"null", b"[[[[", b'{"input": 1e999}', os.urandom(20), b'{"input":"\\u0000"}'])
    length = dice.choice([len(body), len(body), len(body), 0, -1, 2**70])
    fields = [
        f"Content-Length: {length}",
        f"Coder-Session-Token: {token}",
        dice.choice(["", "X: \x00", "Expect: 100-continue"]),
    ]
    text = (
        f"{method} {path}{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        + "\r\n".join(filter(None, fields))
        + "\r\n\r\n"
    )
    sent = bytearray(text.encode("utf-8") + body)
    if dice.random() < 0.3:
        for _ in range(dice.randrange(1, 6)):
            sent[dice.randrange(len(sent))] = dice.randrange(256)
    return bytes(sent)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_ten_thousand_malformed_requests(start_api: StartApi) -> None:
    """No malformed request gets a 500, and the next valid request is served."""
    async with start_api(api_read_timeout=0.5, log_level="error") as api_harness:
        dice = Random(4)
        statuses: dict[bytes, int] = {}
        slots = asyncio.Semaphore(64)

        async def one(sent: bytes) -> None:
            async with slots, asyncio.timeout(TIMEOUT):
                reader, writer = await asyncio.open_connection("127.0.0.1", api_harness.api.port)
                writer.write(sent)
                try:
                    response = await reader.read(1 << 20)
                except ConnectionError:
                    response = b""
                writer.close()
                status = response[9:12]
                statuses[status] = statuses.get(status, 0) + 1

        for _ in range(10):
            await asyncio.gather(*(one(malformed(dice, api_harness.tokens["alice"])) for _ in range(1000)))
        assert sum(statuses.values()) == 10_000
        assert b"500" not in statuses, statuses
        assert {b"400", b"404", b"405"} <= set(statuses), statuses
        assert api_harness.api.metrics.registry.get_sample_value("taskherd_api_crashes_total") == 0
        assert (await api_harness.alice.get("/tasks")).status_code == 200
