"""How slowly a client may take what is written to its connection."""

from __future__ import annotations

import socket
from typing import Any, cast

import pytest

from taskherd.http_protocol import MIN_RATE, BoundedTransport

SECONDS = 10.0
ENOUGH = int(MIN_RATE * SECONDS)


class Timer:
    """A timer that runs when a test lets it."""

    def __init__(self, callback: Any) -> None:
        self.callback = callback
        self.is_set = True

    def cancel(self) -> None:
        """Unset it."""
        self.is_set = False


class Client:
    """A transport and its loop: how much waits to be taken, whether it was aborted, and the timer that was set."""

    def __init__(self, waiting: int, sock: socket.socket | None = None) -> None:
        self.waiting = waiting
        self.aborted = self.closed = False
        self.bounded = BoundedTransport(cast("Any", self), cast("Any", self), SECONDS)
        self._socket = sock
        self._timer = Timer(None)
        self._timer.cancel()

    def get_write_buffer_size(self) -> int:
        """Return what waits."""
        return self.waiting

    def get_extra_info(self, _name: str) -> socket.socket | None:
        """Return the socket."""
        return self._socket

    def is_closing(self) -> bool:
        """Return whether it was closed."""
        return self.closed

    def close(self) -> None:
        """Note it."""
        self.closed = True

    def abort(self) -> None:
        """Note it."""
        self.aborted = True

    def call_later(self, seconds: float, callback: Any) -> Timer:
        """Set the timer."""
        assert seconds == SECONDS
        self._timer = Timer(callback)
        return self._timer

    @property
    def is_watched(self) -> bool:
        """Return whether the last timer is to run."""
        return self._timer.is_set

    def take(self, size: int) -> None:
        """Let the client take so much in one period, which ends."""
        self.waiting -= size
        self._timer.is_set = False
        self._timer.callback()


def test_a_client_may_be_slow_but_not_too_slow() -> None:
    """Who takes enough in each period is served however long it takes; the first period with too little is the last."""
    client = Client(10 * ENOUGH)
    client.bounded.watch()
    for _ in range(5):
        client.take(ENOUGH)
        assert (client.aborted, client.is_watched) == (False, True)
    client.take(ENOUGH - 1)
    assert (client.aborted, client.is_watched) == (True, False)


@pytest.mark.parametrize("closed", [False, True])
def test_a_client_that_has_taken_most_is_watched_only_after_the_end(*, closed: bool) -> None:
    """A connection that was closed is watched until it has ended, others until the client has taken most."""
    client = Client(ENOUGH)
    client.bounded.watch()
    if closed:
        client.bounded.close()
    client.bounded.resume_writing()
    assert client.is_watched is closed
    client.bounded.end_watch()
    assert (client.is_watched, client.closed, client.aborted) == (False, closed, False)


@pytest.mark.parametrize("waiting", [0, 1])
def test_a_closed_connection_is_watched_if_something_waits(waiting: int) -> None:
    """However little it is: it could wait for ever."""
    client = Client(waiting)
    client.bounded.close()
    assert (client.closed, client.is_watched) == (True, waiting > 0)


def test_what_waits_in_the_kernel_counts() -> None:
    """The kernel takes more for a slow client only now and then; meanwhile the buffer does not shrink."""
    sender, receiver = socket.socketpair()
    with sender, receiver:
        sender.send(bytes(ENOUGH))
        client = Client(ENOUGH, sender)
        client.bounded.watch()
        receiver.recv(ENOUGH)
        client.take(0)
        assert not client.aborted
