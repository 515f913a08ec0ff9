"""Named points at which a test can kill or freeze the process: ``TASKHERD_FAILPOINT=name:kill`` or ``name:stop``."""

from __future__ import annotations

import os
import signal
from enum import StrEnum
from typing import TYPE_CHECKING

from taskherd.errors import Misconfigured

if TYPE_CHECKING:
    from collections.abc import Callable


class Failpoint(StrEnum):
    """The failpoints, in the order in which a report reaches them.

    At ``post_claim`` a claim is committed, and at ``request_send`` the attempt to send work requests. Those after it
    are for requests of agents: their rows are written but not committed; their commands are committed, but not replied
    to; the attempt to send answers is committed; and the answers are sent. Two are for interrupts: that one has begun
    or ended is written but not committed; and its command is committed, but not replied to. At ``command_committed``
    commands of any kind are committed, but not replied to. Three are those of an API: a step of an action is claimed;
    its commands have all their replies; and its results are committed. The others are those of a runner: a request of
    an agent is recorded; an answer was received; a line for an agent is recorded, submitted to the shim, and known to
    be written; and an interrupt is in the journal, has sent SIGINT, has an outcome, and is reported.
    """

    RECEIVE = "receive"
    WRITE = "write"
    PRE_COMMIT = "pre_commit"
    POST_COMMIT = "post_commit"
    POST_ACK = "post_ack"
    RELAY_SELECT = "relay_select"
    RELAY_PUBLISH = "relay_publish"
    RELAY_CONFIRM = "relay_confirm"
    RELAY_MARK = "relay_mark"
    POST_CLAIM = "post_claim"
    REQUEST_SEND = "request_send"
    AGENT_REQUESTS_SAVED = "agent_requests_saved"
    ANSWER_COMMITTED = "answer_committed"
    ANSWER_SEND = "answer_send"
    ANSWER_SENT = "answer_sent"
    INTERRUPT_SAVED = "interrupt_saved"
    INTERRUPT_COMMITTED = "interrupt_committed"
    COMMAND_COMMITTED = "command_committed"
    ACTION_CLAIMED = "action_claimed"
    ACTION_REPLIED = "action_replied"
    ACTION_SAVED = "action_saved"
    REQUEST_RECORD = "request_record"
    ANSWER_RECEIVE = "answer_receive"
    LINE_RECORD = "line_record"
    LINE_SUBMIT = "line_submit"
    LINE_WRITTEN = "line_written"
    INTERRUPT_RECORD = "interrupt_record"
    INTERRUPT_SIGNAL = "interrupt_signal"
    INTERRUPT_OUTCOME = "interrupt_outcome"
    INTERRUPT_REPORT = "interrupt_report"


SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def failpoint_hook(setting: str) -> Callable[[Failpoint], None]:
    """Return the function to call at each failpoint; it sends a signal to this process at the one in ``setting``.

    Raise ``Misconfigured`` if the setting names no failpoint or signal.
    """
    if not setting:
        return lambda _failpoint: None
    name, _, action = setting.partition(":")
    if name not in set(Failpoint) or action not in SIGNALS:
        raise Misconfigured("failpoint", f"expected one of {', '.join(Failpoint)}, then :kill or :stop")

    def hit(failpoint: Failpoint) -> None:
        if failpoint == name:
            os.kill(os.getpid(), SIGNALS[action])

    return hit
