"""Which replies are sent, and what becomes of those that may not be."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from taskherd.broker.publisher import OutgoingMessage
from taskherd.broker.topology import TopologyNames
from taskherd.worker.outgoing_replies import OutgoingReply, reply_queue, send_replies
from tests.harness.buffers import Message
from tests.harness.contexts import partial_context


class Replies(list[OutgoingMessage]):
    """The replies that were sent."""

    def offer(self, message: OutgoingMessage) -> None:
        """Send one."""
        self.append(message)


def test_replies_go_to_the_queues_of_their_senders() -> None:
    """With the id that they carry; that to a command that was executed before says so."""
    sent = Replies()
    context = partial_context(replies=sent, names=TopologyNames("test"))
    deliveries = [Message(b"", tag, reply_to=f"queue-{tag}") for tag in (1, 2)]
    send_replies(
        context, [OutgoingReply(deliveries[0], b"first"), OutgoingReply(deliveries[1], b"again", repeated=True)]
    )
    assert sent == [
        OutgoingMessage("", "queue-1", b"first", correlation_id="1"),
        OutgoingMessage("", "queue-2", b"again", headers={"x-taskherd-repeated": True}, correlation_id="2"),
    ]


@pytest.mark.parametrize(("reply_to", "is_told"), [("", False), ("test.work.r1", True)])
def test_a_reply_that_may_not_be_sent_is_dropped(reply_to: str, *, is_told: bool) -> None:
    """A queue of taskherd's own is logged; a sender that wants no reply is not."""
    sent = Replies()
    context = partial_context(replies=sent, names=TopologyNames("test"))
    delivery = Message(b"", 1, reply_to=reply_to)
    assert reply_queue(context, delivery) is None
    with capture_logs() as logged:
        send_replies(context, [OutgoingReply(delivery, b"dropped")])
    assert (sent, [each["reply_to"] for each in logged]) == ([], [reply_to] * is_told)
