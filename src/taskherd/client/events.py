"""Follow a stream of task events, reconnecting when it is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from taskherd import sse
from taskherd.client.errors import ApiError, ClientError, ExitCode, Unreachable
from taskherd.client.http import Client
from taskherd.client.outages import BACKOFF, MAX_FAILURES, RETRIED

MAX_SILENCE: Final = 45.0
"""Seconds without a byte after which a stream counts as lost: three times the interval of the server's comments."""
MIN_DURATION: Final = 5.0
"""Seconds that a stream lasts; after several in a row that end sooner, the waits before a reconnect grow."""
MAX_EVENT: Final = 16 * 1024 * 1024
"""Maximum size of an event, in bytes; a larger one is dropped. Entries of a log have 4 MiB before they are JSON."""
_CHUNK: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """An event about a task.

    ``type`` is ``task.snapshot``, ``task.created``, ``task.updated`` or ``task.deleted``. ``data`` is the task document
    for a snapshot, else the change event, whose document is ``data["data"]["task"]``. ``id`` is the position in the
    feed after this event, "" if the stream has not sent one yet. A stream with a log also has ``task.logs``, with
    ``logs`` and ``truncated``, and ``task.inbox``.
    """

    type: str
    id: str
    data: Any


def stream_events(
    client: Client,
    *path: str,
    query: dict[str, str] | None = None,
    notice: Callable[[str], None],
    sleep: Callable[[float], object] = time.sleep,
    is_stopped: Callable[[], bool] = lambda: False,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[StreamEvent]:
    """Yield the events of a stream until the caller stops; reconnect after the last event when the stream is lost.

    The first reconnect is immediate. The waits before others grow while streams bring nothing, or end soon.

    Args:
        client: the server and token to use.
        path: the segments of the stream's path below ``/api/v2``, such as ``"tasks", "me", "docs", "watch"``.
        query: the query parameters.
        notice: called with the reason each time the stream is lost.
        sleep: waits for the given number of seconds before a reconnect.
        is_stopped: whether the stream is to end; asked when something was received, and before a reconnect.
        now: the clock, in seconds.

    Raises:
        ClientError: if the server refuses the stream, or cannot be reached ``MAX_FAILURES`` times in a row. If the
            server answered the last time, it is the error of that answer.
    """
    position, failures, short_streams = "", 0, 0
    while not is_stopped():
        started_at, has_received = now(), False
        parser = sse.Parser(max_event_bytes=MAX_EVENT, last_event_id=position)
        refusal: ApiError | None = None
        try:
            headers = {"Last-Event-ID": position} if position else {}
            with client.stream("GET", *path, query=query, headers=headers, timeout=MAX_SILENCE) as response:
                for chunk in iter(lambda: response.read1(_CHUNK), b""):
                    if is_stopped():
                        return
                    failures, has_received = 0, True
                    yield from _task_events(parser, chunk)
        except ApiError as error:
            if error.status not in RETRIED:
                raise
            refusal = error
            notice(error.message)
        except Unreachable as error:
            notice(error.message)
        position = parser.last_event_id
        failures += 1
        if has_received:
            short_streams = short_streams + 1 if now() - started_at < MIN_DURATION else 0
        if failures > MAX_FAILURES:
            raise refusal or ClientError(
                ExitCode.ERROR, "the stream was lost and did not come back", "check that `taskherd api` is running"
            )
        requested = min((parser.retry_ms or 0) / 1000, BACKOFF.maximum)
        in_a_row = max(failures, short_streams)
        sleep(max(requested, BACKOFF.delay(in_a_row - 1) if in_a_row > 1 else 0))


def _task_events(parser: sse.Parser, chunk: bytes) -> Iterator[StreamEvent]:
    for event in parser.feed(chunk):
        if event.type.startswith("task."):
            yield StreamEvent(event.type, event.id, json.loads(event.data))
