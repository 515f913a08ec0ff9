"""Places where a test can make the process die or freeze: ``TASKHERD_FAILPOINT=name:kill`` or ``name:stop``."""

from __future__ import annotations

import os
import signal
from enum import StrEnum
from typing import TYPE_CHECKING

from taskherd.errors import Misconfigured

if TYPE_CHECKING:
    from collections.abc import Callable


class Failpoint(StrEnum):
    """The places, in the order in which a report passes them."""

    RECEIVE = "receive"
    WRITE = "write"
    PRE_COMMIT = "pre_commit"
    POST_COMMIT = "post_commit"
    POST_ACK = "post_ack"
    RELAY_SELECT = "relay_select"
    RELAY_PUBLISH = "relay_publish"
    RELAY_CONFIRM = "relay_confirm"
    RELAY_MARK = "relay_mark"


SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def arm(setting: str) -> Callable[[Failpoint], None]:
    """What to call at each place: it sends this process the signal at the one that the setting names."""
    if not setting:
        return lambda _place: None
    name, _, action = setting.partition(":")
    if name not in set(Failpoint) or action not in SIGNALS:
        raise Misconfigured("failpoint", f"expected one of {', '.join(Failpoint)}, then :kill or :stop")

    def hit(place: Failpoint) -> None:
        if place == name:
            os.kill(os.getpid(), SIGNALS[action])

    return hit
