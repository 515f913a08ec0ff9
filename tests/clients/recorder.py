"""A proxy on loopback that records the requests of a client and the statuses of the answers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass
class Recorder:
    """The proxy; ``requests`` are those whose answers have been seen, in the order of the answers."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)


def messages(buffer: bytearray) -> Iterator[tuple[str, bytes]]:
    """Cut complete HTTP/1.1 messages with a length off the buffer: first line and body."""
    while (end := buffer.find(b"\r\n\r\n")) >= 0:
        head = bytes(buffer[:end])
        length = _LENGTH.search(head)
        stop = end + 4 + (int(length[1]) if length else 0)
        if len(buffer) < stop:
            return
        body = bytes(buffer[end + 4 : stop])
        del buffer[:stop]
        yield head.split(b"\r\n", 1)[0].decode("latin-1"), body


@asynccontextmanager
async def recording(target_port: int) -> AsyncIterator[Recorder]:
    """Run the proxy in front of a port of this machine while the block runs."""
    recorder = Recorder()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", target_port)
        pending: list[dict[str, Any]] = []

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, asks: bool) -> None:
            buffer = bytearray()
            with suppress(OSError):
                while part := await source.read(65_536):
                    buffer += part
                    for line, body in messages(buffer):
                        if asks:
                            method, path, _ = line.split(" ")
                            pending.append({"method": method, "path": path, "body": json.loads(body) if body else None})
                        else:
                            recorder.requests.append({**pending.pop(0), "status": int(line.split(" ")[1])})
                    sink.write(part)
                    await sink.drain()
                sink.close()

        await asyncio.gather(
            copy(reader, upstream_writer, asks=True), copy(upstream_reader, writer, asks=False), return_exceptions=True
        )

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    recorder.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield recorder
    finally:
        server.close()
