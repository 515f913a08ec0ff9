"""An interrupt: where KeyboardInterrupt is raised."""

from __future__ import annotations

import asyncio
import io
import os
import signal

import pytest

from taskherd.dev import dev


class _InterruptedFile(io.RawIOBase):
    """A file in which the first write is interrupted."""

    interrupted = False

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        if not self.interrupted:
            self.interrupted = True
            os.kill(os.getpid(), signal.SIGINT)
        return len(memoryview(data))  # type: ignore[arg-type]


def test_without_an_event_loop_it_is_raised_at_once() -> None:
    """Synchronous code is interrupted where it is."""
    announced: list[str] = []
    with pytest.raises(KeyboardInterrupt), dev.interruptible(announced.append):
        os.kill(os.getpid(), signal.SIGINT)
    assert announced == ["stopping"]


def test_an_interrupt_in_the_middle_of_a_line_is_one_too() -> None:
    """A line that the stream refuses then does not take the place of the interrupt."""
    stream = io.TextIOWrapper(io.BufferedWriter(_InterruptedFile()))
    with pytest.raises(KeyboardInterrupt), dev.interruptible(lambda line: print(line, file=stream, flush=True)):
        print("running", file=stream, flush=True)


def test_in_an_event_loop_it_ends_no_task_at_an_arbitrary_point() -> None:
    """The task that runs when the signal arrives goes on to its next await, where it is cancelled like all others.

    Raised at once, the exception would end that task, perhaps a library's own, for which another one waits for ever.
    """
    steps: list[str] = []

    async def main() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        steps.append("continued")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            steps.append("cancelled")
            raise

    with pytest.raises(KeyboardInterrupt), dev.interruptible(lambda _: None):
        asyncio.run(main())
    assert steps == ["continued", "cancelled"]
