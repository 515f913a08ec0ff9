"""Which queues a reply may be published to: the sender names one, and the worker may write to all."""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from taskherd.broker.topology import TopologyNames

DIRECT: Final = "amq.rabbitmq.reply-to"
"""The pseudo-queue of replies without a queue (https://www.rabbitmq.com/docs/direct-reply-to)."""
_RESERVED: Final = "amq."
_SERVER_NAMED: Final = "amq.gen-"
_DIRECT_NAME: Final = re.compile(re.escape(DIRECT) + r"\.([A-Za-z0-9+/=]+)\.([A-Za-z0-9+/=]+)")
_PROCESS: Final = re.compile(rb"\x83X(?:v\x00|w)(.)(reply@[0-9]{1,20}).{12}", re.DOTALL)
"""An Erlang process id (NEW_PID_EXT in https://www.erlang.org/doc/apps/erts/erl_ext_dist), node after length."""
_KEY_BYTES: Final = 16


def may_reply_to(names: TopologyNames, queue: str) -> bool:
    """Return whether a reply may be published to ``queue`` through the default exchange.

    The queues of this topology are refused: a runner could put work requests or commands into them. So are reserved
    names that RabbitMQ does not give: one like those of direct replies that it cannot decode costs the connection.
    """
    if queue.startswith(f"{names.prefix}."):
        return False
    return not queue.startswith(_RESERVED) or queue.startswith(_SERVER_NAMED) or is_direct(queue)


@lru_cache(maxsize=1_024)
def is_direct(queue: str) -> bool:
    """Return whether this is a name that RabbitMQ gives for direct replies. A client has the same for all its calls."""
    match = _DIRECT_NAME.fullmatch(queue)
    if match is None:
        return False
    try:
        process, key = (b64decode(part, validate=True) for part in match.groups())
    except binascii.Error:
        return False
    decoded = _PROCESS.fullmatch(process)
    return decoded is not None and decoded[1][0] == len(decoded[2]) and len(key) == _KEY_BYTES
