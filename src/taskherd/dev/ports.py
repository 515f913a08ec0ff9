"""Find free TCP ports on the loopback address, preferring those used before."""

from __future__ import annotations

import random
import re
import socket
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Final

from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HOST: Final = "127.0.0.1"
# Below the range of ports that Linux and macOS use for outgoing connections, so that no connection occupies the port of
# a node that restarts.
_RANGE: Final = range(20_000, 32_000)
_ATTEMPTS: Final = 200
_MAX_STARTS: Final = 3


def find_free(wanted: list[int | None]) -> list[int]:
    """Return one free port for each element of ``wanted``, all different; an element that is a free port is kept.

    Raises:
        Unavailable: if 200 random ports were all in use.
    """
    with ExitStack() as listeners:
        return [_bind(port, listeners) for port in wanted]


def start_on_free(start: Callable[[], None], chosen: Callable[[], Sequence[int | None]]) -> None:
    """Call ``start``, which chooses free ports, and again if another process takes one before the server does.

    ``chosen`` returns the ports; one was taken if it is not free now, or if the error names it: others may have had it
    for a moment only. Raise what ``start`` raises, for any other reason and after the third time.
    """
    for attempt in range(1, _MAX_STARTS + 1):
        try:
            start()
        except Unavailable as error:
            if attempt == _MAX_STARTS or not (_names(error, chosen()) or find_free([*chosen()]) != [*chosen()]):
                raise
        else:
            return


def _names(error: Unavailable, numbers: Sequence[int | None]) -> bool:
    return any(re.search(rf"\b{number}\b", str(error)) for number in numbers if number)


def _bind(wanted: int | None, listeners: ExitStack) -> int:
    candidates = [wanted] if wanted else []
    candidates += random.sample(_RANGE, _ATTEMPTS)
    for port in candidates:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen(1)
        except OSError:
            listener.close()
        else:
            listeners.enter_context(closing(listener))
            return port
    raise Unavailable(f"no free port on {HOST} between {_RANGE.start} and {_RANGE.stop}")
