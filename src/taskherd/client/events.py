"""Reading server-sent events, and coming back to a stream that ended (HTML standard, section 9.2)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from taskherd.backoff import Backoff
from taskherd.client.errors import ClientError, Exit, Refused, Unreachable
from taskherd.client.http import Client

SILENCE_MOST: Final = 45.0
"""Seconds without a word, three of the server's comments, after which a stream is given up and asked for again."""
TRIES: Final = 8
"""Attempts in a row to come back, with longer and longer waits between them."""
_BACKOFF: Final = Backoff(first=1.0, maximum=15.0, jitter=0.2)
LINE_MOST: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `id` is the position from which a reader goes on after it, "" while none was told."""

    type: str
    id: str
    data: Any


def parse(lines: Iterable[bytes]) -> Iterator[Event]:
    """The events in a stream's lines, also those that tell no more than a position, with no data.

    Comments are left out, and so is an event that was cut off by the end.
    """
    kind, position, data = "", "", list[str]()
    for raw in lines:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if not line:
            yield Event(kind, position, json.loads("\n".join(data)) if data else None)
            kind, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                kind = value
            case "id":
                position = value
            case "data":
                data.append(value)
            case _:
                pass  # a comment, or a field that is not ours


def followed(
    client: Client,
    *path: str,
    query: dict[str, str] | None = None,
    notice: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Event]:
    """The events of a stream, for as long as the caller wants them; it is asked for again from where it ended.

    `notice` is told when the stream is lost. Raises ClientError when it is refused, or can't be had again.
    """
    position, tries = "", 0
    while True:
        try:
            headers = {"Last-Event-ID": position} if position else {}
            with client.opened("GET", *path, query=query, headers=headers, timeout=SILENCE_MOST) as response:
                for event in parse(iter(lambda: response.readline(LINE_MOST), b"")):
                    tries, position = 0, event.id or position
                    if event.type.startswith("task."):
                        yield event
        except Refused as error:
            if error.status not in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}:
                raise
            notice(error.message)
        except Unreachable as error:
            notice(error.message)
        tries += 1
        if tries > TRIES:
            raise ClientError(Exit.ERROR, "the stream was lost and did not come back", "is the server up?")
        if tries > 1:
            sleep(_BACKOFF.delay(tries - 1))
