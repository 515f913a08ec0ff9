"""Read a stream in a thread, so that its caller can do something else while nothing comes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, Full, Queue
from typing import Final

from taskherd.client.events import StreamEvent, stream_events
from taskherd.client.http import Client

MAX_WAITING: Final = 16
"""Maximum number of events that wait for the caller."""
_INTERVAL: Final = 1.0
"""Seconds between two looks whether the caller has gone."""


@contextmanager
def reading(
    client: Client, *path: str, query: dict[str, str], notice: Callable[[str], None]
) -> Iterator[Callable[[float], StreamEvent | None]]:
    """Read a stream of events, as ``stream_events`` does, while the block runs.

    Yield a function that waits so many seconds for the next event, and returns None if there is none. It raises what
    ended the stream.
    """
    stopped = threading.Event()
    received: Queue[StreamEvent | Exception] = Queue(MAX_WAITING)

    def put(item: StreamEvent | Exception) -> None:
        while not stopped.is_set():
            try:
                received.put(item, timeout=_INTERVAL)
            except Full:
                continue
            return

    def read() -> None:
        try:
            for event in stream_events(
                client, *path, query=query, notice=notice, sleep=stopped.wait, is_stopped=stopped.is_set
            ):
                put(event)
        except Exception as error:  # noqa: BLE001 - raised again where the events are read
            put(error)

    def next_event(timeout: float) -> StreamEvent | None:
        try:
            item = received.get(timeout=timeout)
        except Empty:
            return None
        if isinstance(item, Exception):
            raise item
        return item

    threading.Thread(target=read, name="stream", daemon=True).start()
    try:
        yield next_event
    finally:
        stopped.set()
