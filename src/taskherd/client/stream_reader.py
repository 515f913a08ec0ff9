"""Read a stream in a thread, so that its caller can do something else while nothing comes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, Full, Queue
from typing import Final, Self

from taskherd.client.events import StreamEvent, stream_events
from taskherd.client.http import Client

MAX_WAITING: Final = 16
"""Maximum number of events that wait for the caller."""
_INTERVAL: Final = 1.0
"""Seconds between two looks whether the caller has gone."""


class StreamReader:
    """The events of a stream, as ``stream_events`` yields them, read while the block of this context manager runs."""

    def __init__(self, client: Client, *path: str, query: dict[str, str], notice: Callable[[str], None]) -> None:
        self._stopped = threading.Event()
        self._received: Queue[StreamEvent | Exception] = Queue(MAX_WAITING)
        self._notice = notice
        self._events = stream_events(
            client,
            *path,
            query=query,
            notice=self._tell,
            sleep=self._stopped.wait,
            is_stopped=self._stopped.is_set,
        )

    def __enter__(self) -> Self:
        threading.Thread(target=self._read, name="stream", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()

    def next(self, timeout: float) -> StreamEvent | None:
        """Return the next event, or None if none comes for so many seconds. Raise what ended the stream."""
        try:
            item = self._received.get(timeout=timeout)
        except Empty:
            return None
        if isinstance(item, Exception):
            raise item
        return item

    def _read(self) -> None:
        try:
            for event in self._events:
                self._put(event)
        except Exception as error:  # noqa: BLE001 - raised again where the events are read
            self._put(error)

    def _put(self, item: StreamEvent | Exception) -> None:
        while not self._stopped.is_set():
            try:
                self._received.put(item, timeout=_INTERVAL)
            except Full:
                continue
            return

    def _tell(self, reason: str) -> None:
        if not self._stopped.is_set():
            self._notice(reason)
