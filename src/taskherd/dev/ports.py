"""Free TCP ports on the loopback address, the same ones again where possible."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, closing
from typing import Final

from taskherd.errors import Unavailable

HOST: Final = "127.0.0.1"
# Below the range from which Linux and macOS draw ports for outgoing connections, so that none of those is in the way
# when a node that was restarted wants its port back.
_RANGE: Final = range(20_000, 32_000)
_TRIES: Final = 200


def claim(wanted: list[int | None]) -> list[int]:
    """As many different free ports as `wanted` has elements; an element that is a free port is kept.

    Raises:
        Unavailable: when 200 draws found no free port.
    """
    with ExitStack() as held:
        return [_bind(port, held) for port in wanted]


def is_open(port: int, *, within: float = 0.5) -> bool:
    """Tell whether something accepts connections on the port, waiting at most `within` seconds."""
    with closing(socket.socket()) as probe:
        probe.settimeout(within)
        return probe.connect_ex((HOST, port)) == 0


def _bind(wanted: int | None, held: ExitStack) -> int:
    draws = [wanted] if wanted else []
    draws += random.sample(_RANGE, _TRIES)
    for port in draws:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen(1)
        except OSError:
            listener.close()
        else:
            held.enter_context(closing(listener))
            return port
    raise Unavailable(f"no free port on {HOST} between {_RANGE.start} and {_RANGE.stop}")
