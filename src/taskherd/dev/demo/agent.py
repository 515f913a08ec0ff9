"""An agent of the demo, a process of its own: does its job step by step and reports each step as it takes it.

`python -m taskherd.dev.demo.agent --task … --agent … --build … --job … --prompt …`; it lives on, idle, until SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import UUID

from taskherd.broker.connection import Link
from taskherd.broker.publish import Publisher
from taskherd.broker.topology import Names
from taskherd.dev.demo import jobs, voice
from taskherd.dev.demo.checks import Step
from taskherd.dev.demo.voice import Voice
from taskherd.settings import load

HEARTBEAT_EVERY: Final = 2.0
PACE: Final = 1.4
"""Seconds between two steps, so that a person can follow."""
VERDICT: Final = "verdict: "
"""The line of an agent's own log that says how its work ended begins with this."""
_LEFT: Final = "left"
_NO_REPORT: Final = b"\x89PNG\r\n\x1a\n is what a picture begins with"
_MESSAGE_MOST: Final = 160


class Agent:
    """One agent; `live` is its whole life."""

    def __init__(self, speaks: Voice, *, garbage: bool) -> None:
        self._voice = speaks
        self._garbage = garbage
        self._leaving = asyncio.Event()
        self._entries = 0

    async def live(self, job: str, prompt: str) -> None:
        """Start up, work, idle until told to leave, and say goodbye; raises Unavailable when the broker is lost."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._leaving.set)
        await self._voice.say(voice.lifecycle("starting"))
        beating = asyncio.create_task(self._beat(), name="heartbeat")
        steps = await asyncio.to_thread(jobs.steps, job, Path.cwd())
        await self._voice.say(voice.lifecycle("ready"), voice.health("healthy"), self._entry("input", prompt))
        print(f"{VERDICT}{await self._work(steps)}", flush=True)
        await self._pause(None)
        beating.cancel()
        await asyncio.wait({beating})
        await self._voice.say(voice.lifecycle("shutting_down"))
        await self._voice.say(voice.goodbye(), voice.lifecycle("off"))

    async def _beat(self) -> None:
        while True:
            await self._voice.say(voice.heartbeat())
            await asyncio.sleep(HEARTBEAT_EVERY)

    async def _work(self, steps: Sequence[Step]) -> str:
        """Take the steps one at a time; how it ended."""
        last = ""
        for number, step in enumerate(steps, 1):
            if self._leaving.is_set():
                return _LEFT
            await self._voice.say(voice.status("working", _short(f"{number}/{len(steps)} {step.title}")))
            done = await asyncio.to_thread(step.do)
            print(f"{step.title}: {done.output}", flush=True)
            said = self._entry("output", f"{step.title}\n{done.output}")
            if not done.well:
                await self._voice.say(said, voice.status("failed", _short(f"{step.title}: {_last_line(done.output)}")))
                return "failed"
            last = _last_line(done.output)
            await self._voice.say(said)
            if self._garbage:
                await self._send_garbage(number)
            await self._pause(PACE)
        await self._voice.say(voice.status("complete", _short(f"{len(steps)} steps, the last: {last}")))
        return "complete"

    async def _send_garbage(self, number: int) -> None:
        """After the second step bytes that are no JSON, after the third an array with one bad element in the middle."""
        match number:
            case 2:
                await self._voice.say_raw(_NO_REPORT)
            case 3:
                good, bad = voice.heartbeat(), voice.status("dancing", "no such state")
                await self._voice.say(good, bad, self._entry("output", "this one is good"))
            case _:
                return

    async def _pause(self, seconds: float | None) -> None:
        """Wait so long, or until told to leave."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._leaving.wait()

    def _entry(self, speaker: str, content: str) -> dict[str, object]:
        self._entries += 1
        return voice.entry(self._entries - 1, speaker, content)


async def run(words: argparse.Namespace) -> None:
    """Live as one agent, on a connection of its own."""
    settings = load("amqp_url")
    link = Link(settings.amqp_url, f"demo agent {words.job}")
    link.start()
    try:
        speaks = Voice(Publisher(link), Names(settings.amqp_prefix), words.task, words.build, words.agent)
        await Agent(speaks, garbage=words.garbage).live(words.job, words.prompt)
    finally:
        await link.close()


def _short(text: str) -> str:
    return text if len(text) <= _MESSAGE_MOST else f"{text[: _MESSAGE_MOST - 1]}…"


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


def _words() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", type=UUID, required=True)
    parser.add_argument("--agent", type=UUID, required=True)
    parser.add_argument("--build", type=int, required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--garbage", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(run(_words()))
