"""Agents behind AgentAPI (github.com/coder/agentapi): follow their event stream, and post inputs as messages.

While a message is being posted, only the event stream works: ``GET /status`` blocks. Therefore the status is requested
only after the stream has broken.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar
from zlib import crc32

import httpx
import orjson

from taskherd import retry, sse
from taskherd.domain.reports import AgentState, Health, InterruptOutcome, Lifecycle, LogSource
from taskherd.messages.fields import parse_instant
from taskherd.messages.limits import MAX_CONTENT_BYTES
from taskherd.runner.agents import agentapi_client
from taskherd.runner.agents.context import (
    DeliveryUnknown,
    FollowerWithoutRequests,
    NotDelivered,
    log_last_output,
    report_exit,
    shorten,
)
from taskherd.runner.agents.interrupting import (
    INTERRUPTED,
    REACTION_TIMEOUT,
    as_interrupted,
    end_agent,
    mark_interrupted,
)
from taskherd.runner.agents.log_budget import LINE_COST, LOG_SHARE
from taskherd.runner.agents.posted_texts import PostedTexts, is_echo
from taskherd.runner.agents.words import MAX_WORDS, last_with_words
from taskherd.runner.log_ids import FIRST_ERROR_ID

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from taskherd.domain.reports import LogEntry, Report
    from taskherd.runner.agents.agentapi_client import AgentApiResponse
    from taskherd.runner.agents.context import AgentContext, RecordAttempt
    from taskherd.runner.outbox import Checkpoint
    from taskherd.runner.workspaces.processes import ExitRecord

STABLE_TIMEOUT = 300.0
"""Seconds for which an input waits until the agent is stable."""
ACCEPT_TIMEOUT = 120.0
"""Seconds after posting within which AgentAPI must echo the message or respond."""
ESCAPE = "\x1b"
"""What a person types to interrupt an agent in a terminal."""
QUIET_TIME = 2.0
"""Maximum number of seconds for which the screen must be stable after Escape; a shorter ``idle_after`` counts."""
_QUIET_POLL_INTERVAL = 0.1
MAX_TURN = 86_400.0
"""Maximum duration of a turn of the agent, in seconds."""
UNREACHABLE_AFTER = 3
"""Consecutive failures after which the agent's app is reported as unhealthy."""
FLUSH_EVERY = 0.5
"""Seconds for which updates of a message are collected: AgentAPI sends one for each change of the screen."""
BUSY = "waiting for user input"
"""Part of AgentAPI's error for a message that arrives while it is not stable (lib/screentracker/conversation.go). Only
after this error and those about what a message "must" be is it certain that nothing was typed into the terminal."""
MAX_MESSAGES = 2_000
"""Maximum number of changed messages that are collected, and of reported ones whose hash is kept."""
ENTRIES_PER_REPORT = 4
MAX_CHANGED_SIZE = 4 * 1024 * 1024
"""Size of the changes, repeated ones included, after which they are reported without waiting for the next flush."""
BUDGET_POLL_INTERVAL = 0.1
"""Seconds between two looks whether there is budget for the log again."""
MAX_ERRORS = 100
"""Maximum number of errors that are remembered as reported; AgentAPI keeps as many."""
_PROGRESS = re.compile(r"[·✢✳✶✻✽*] \S+(…| for \d)")
"""Claude Code's progress line, as ``✽ Pondering… (3s)`` and afterwards ``✻ Cooked for 6s``."""


class AgentApiFollower(FollowerWithoutRequests):
    """The follower of an agent behind AgentAPI."""

    needs_port: ClassVar[bool] = True
    initial_health: ClassVar[Health] = Health.INITIALIZING
    start_outcome: str | None = ""

    def __init__(self, context: AgentContext, client: httpx.AsyncClient | None = None) -> None:
        self._context = context
        assert context.journal.port is not None
        self._client = client or agentapi_client.open_client(context.journal.port, context.identify_peer)
        self._has_reported_foreign = False
        checkpoint = context.checkpoint
        self._state: str = checkpoint.get("state", "")
        self._errors: int = checkpoint.get("errors", 0)
        self._stable = asyncio.Event()
        self._stable_since = 0.0
        self._status_known = asyncio.Event()
        self._errors_seen: dict[int, None] = dict.fromkeys(checkpoint.get("errors_seen", ()))
        self._failures = 0
        self._unreachable = False
        """Whether the app was reported as unhealthy because AgentAPI does not answer."""
        self._reached = asyncio.Event()
        self._changed: dict[int, LogEntry] = {}
        self._changed_size = 0
        """Characters of all changes since the last flush, also of those that were changed again."""
        self._reported: dict[int, int] = {}
        self._shown = 0
        """How often a message was changed, or entries or a state were reported."""
        self._latest = ""
        self._delivery_lock = asyncio.Lock()
        self._highest_id = -1
        self._posted_texts = PostedTexts(**checkpoint.get("posted", {}))
        if not checkpoint and context.prompt and not context.run.post_prompt:
            self._posted_texts.add(context.prompt)  # the agent has it from elsewhere
        self._posted: tuple[str, int, asyncio.Event] | None = None
        """The text being posted, the highest message id before it, and the event to set when the message is echoed."""
        self._posts: set[asyncio.Task[AgentApiResponse]] = set()
        self._has_begun = asyncio.Event()
        """Set once the agent was given its prompt, if there is one to post."""
        if not (context.run.post_prompt and context.prompt):
            self._has_begun.set()

    async def follow(self) -> None:
        """Report what the agent does, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen())
                group.create_task(self._flush_regularly())
                group.create_task(self._report_start())
        finally:
            for post in self._posts:
                post.cancel()
            await asyncio.gather(*self._posts, return_exceptions=True)
            await self._client.aclose()

    async def deliver(self, text: str, record_attempt: RecordAttempt) -> None:
        """Post an input as a message once the agent is stable. Raise ``NotDelivered`` or ``DeliveryUnknown``."""
        text = text.strip()  # AgentAPI rejects any other text
        if not text:
            raise NotDelivered("The input is empty.")
        async with self._delivery_lock:
            deadline = asyncio.get_running_loop().time() + STABLE_TIMEOUT
            await self._wait_stable(deadline)
            await record_attempt()
            self._posted_texts.add(text, self._highest_id)
            self._context.reporter.log([], checkpoint=self._checkpoint())  # for the next runner to know its message
            try:
                while not await self._post(text):
                    await asyncio.sleep(1)
                    await self._wait_stable(deadline)
            except NotDelivered:
                self._posted_texts.discard_last()
                raise

    @property
    def is_at_work(self) -> bool:
        """Whether the agent's screen changes, a message is being posted, or the prompt is still to be given."""
        return not self._stable.is_set() or self._posted is not None or not self._has_begun.is_set()

    async def interrupt(self) -> InterruptOutcome:
        """Type Escape, and wait until the screen is stable; end an agent that goes on. Raise ``NotInterrupted``."""
        context = self._context
        with suppress(TimeoutError):
            async with asyncio.timeout(REACTION_TIMEOUT):
                await self._has_begun.wait()  # or its turn would begin after the interrupt
                await self._status_known.wait()  # a second Escape means something else to some agents
                if not self.is_at_work:
                    return InterruptOutcome.ENDED
                await self._type_escape()
                await self._wait_quiet(min(context.run.idle_after, QUIET_TIME))
                self._state = AgentState.IDLE
                self._report([], self._guess(AgentState.IDLE, INTERRUPTED))
                return InterruptOutcome.STOPPED
        await mark_interrupted(context, interrupted=True)
        return await end_agent(context)

    async def conclude(self, agent_exit: ExitRecord) -> None:
        """Report the last messages and the exit."""
        agent_exit = as_interrupted(self._context, agent_exit)
        self._report(list(self._changed.values()))
        self._changed.clear()
        words = log_last_output(self._context, agent_exit)
        report_exit(self._context, agent_exit, self._state, shorten(self._latest), self._latest or words)

    async def _report_start(self) -> None:
        """Report when the agent is ready or exceeds its start timeout, then post the prompt."""
        context = self._context
        if not context.journal.ready_reported:
            try:
                async with asyncio.timeout(context.run.start_timeout):
                    await self._reached.wait()
            except TimeoutError:
                context.reporter.lifecycle(Lifecycle.START_TIMEOUT)
                context.reporter.health(Health.UNHEALTHY)
                await self._reached.wait()
            if not self._has_begun.is_set():  # before the task is active, or it would be sent inputs
                self._set_working()
            context.reporter.ready()
            context.reporter.health(Health.HEALTHY)
            context.journal.ready_reported = True
            await context.save()
        if context.run.post_prompt:
            await self._recover_prompt()
            error = await context.post_prompt()
            self._stable_since = asyncio.get_running_loop().time()
            self._has_begun.set()
            if error:
                self._report_error(f"Prompt delivery failed: {error}")

    async def _recover_prompt(self) -> None:
        """Find out whether an earlier runner that died while it posted the prompt has posted it, and record that.

        AgentAPI repeats all messages to a new client. An agent that goes on working counts as having its prompt.
        """
        if self._context.unsettled_prompt is None:
            return
        prompt = self._context.prompt.strip()
        with suppress(TimeoutError):
            async with asyncio.timeout(STABLE_TIMEOUT):
                quiet_time = min(self._context.run.idle_after, QUIET_TIME)
                await self._wait_quiet(quiet_time, unless=lambda: self._posted_texts.is_shown(prompt))
        is_shown = self._posted_texts.settle(prompt)
        self._context.recover_prompt(is_given=is_shown or not self._stable.is_set())
        await self._context.save()

    async def _listen(self) -> None:
        while True:
            try:
                await self._stream()
            except agentapi_client.ForeignListener as error:
                self._report_foreign(str(error))
            except httpx.HTTPError:
                pass
            self._failures += 1
            await self._poll_status()
            self._report_unreachable()
            await asyncio.sleep(retry.delay(self._failures))

    def _report_foreign(self, problem: str) -> None:
        """Report, once, that another process has the agent's port; an agent that was not ready has failed to start."""
        if self._has_reported_foreign:
            return
        self._has_reported_foreign = True
        context = self._context
        if context.journal.ready_reported:
            self._report_error(problem)
            return
        context.reporter.lifecycle(Lifecycle.START_ERROR)
        self._state = AgentState.FAILED
        self._report_error(problem)
        context.reporter.health(Health.UNHEALTHY)
        context.stop_agent()

    async def _stream(self) -> None:
        """Process events until the stream breaks. Raise ``httpx.HTTPError`` then."""
        parser = sse.Parser()
        async with agentapi_client.open_events(self._client) as response:
            self._mark_reachable()
            async for chunk in response.aiter_raw():
                lines = 1 + chunk.count(b"\n") + chunk.count(b"\r")
                self._context.log_budget.spend(0, lines * LINE_COST + len(chunk) // LOG_SHARE)
                for event in parser.feed(chunk):
                    await self._handle_event(event)
                await self._wait_allowed()  # there may have been no event

    async def _poll_status(self) -> None:
        """Request the status, because no stream reports it now."""
        with suppress(httpx.HTTPError, ValueError, AttributeError, RecursionError):
            answer = await agentapi_client.fetch_status(self._client)
            if answer.is_success:
                self._mark_reachable()
                self._set_status(str(orjson.loads(answer.body).get("status")))

    def _mark_reachable(self) -> None:
        """Reset the count of failures, and report the app as healthy if it was unhealthy."""
        if self._unreachable:
            self._context.reporter.health(Health.HEALTHY)
        self._unreachable = False
        self._failures = 0
        self._reached.set()

    def _report_unreachable(self) -> None:
        """Report the app as unhealthy, once, unless a post explains why AgentAPI does not answer."""
        is_ready = self._context.journal.ready_reported and not self._posts
        if self._failures >= UNREACHABLE_AFTER and is_ready and not self._unreachable:
            self._unreachable = True
            self._context.reporter.health(Health.UNHEALTHY)

    async def _handle_event(self, event: sse.Event) -> None:
        await self._wait_allowed()
        shown = self._shown
        try:
            fields = orjson.loads(event.data)
            match event.type:
                case "message_update":
                    self._handle_message(fields)
                case "status_change":
                    self._set_status(str(fields["status"]))
                case "agent_error":
                    self._handle_error(str(fields["message"]), str(fields.get("level", "error")), fields.get("time"))
                case _:
                    pass  # a newer AgentAPI may send other types
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
            self._context.metrics.runner_agent_events_bad.inc()
        if self._shown == shown:  # an agent could send such events almost for free
            self._context.log_budget.spend(0, len(event.data))
        if len(self._changed) >= MAX_MESSAGES or self._changed_size >= MAX_CHANGED_SIZE:
            self._flush()

    def _handle_message(self, fields: dict[str, Any]) -> None:
        message_id, text, role = int(fields["id"]), str(fields["message"]), str(fields["role"])
        if not 0 <= message_id < FIRST_ERROR_ID:
            raise ValueError(message_id)
        source = self._posted_texts.source(message_id, role, text)
        if source is None:
            return
        at = _parse_time(fields.get("time"))
        lines = text.split("\n", MAX_CONTENT_BYTES)[:MAX_CONTENT_BYTES]  # an entry has no room for more
        text_shown = "\n".join(line.rstrip() for line in lines).rstrip()  # AgentAPI pads lines to the screen's width
        entry = self._context.reporter.entry(message_id, source, text_shown[: MAX_CONTENT_BYTES + 1], at)
        self._changed[message_id] = entry
        self._changed_size += len(entry.content)
        self._shown += 1
        if source is LogSource.OUTPUT:
            self._latest = last_with_words(_spoken_lines(text_shown[-MAX_WORDS:].split("\n")), self._latest)
        elif self._posted and message_id > self._posted[1] and is_echo(self._posted[0], text):
            self._posted[2].set()
        self._highest_id = max(self._highest_id, message_id)

    def _handle_error(self, message: str, level: str, time: object) -> None:
        """Report an error of AgentAPI once: each new stream starts with the errors of all earlier ones."""
        digest = crc32(f"{time} {message}".encode())
        if digest in self._errors_seen:
            return
        self._errors_seen[digest] = None
        while len(self._errors_seen) > MAX_ERRORS:
            del self._errors_seen[next(iter(self._errors_seen))]
        self._report_error(f"AgentAPI {level}: {message}"[: MAX_CONTENT_BYTES + 1])

    def _report_error(self, message: str) -> None:
        """Report an error as a log entry and in the message of the current state."""
        entry_id = FIRST_ERROR_ID + self._errors
        self._errors += 1
        entry = self._context.reporter.entry(entry_id, LogSource.OUTPUT, message)
        state = AgentState(self._state) if self._state else AgentState.WORKING
        self._report([entry], self._context.reporter.status_report(state, message))

    def _set_status(self, status: str) -> None:
        """Report ``working`` at once; note since when the agent is ``stable``, for ``_flush_regularly``."""
        match status:
            case "running":
                self._stable.clear()
                self._stable_since = 0.0
                self._set_working()
            case "stable":
                if not self._stable.is_set():
                    self._stable_since = asyncio.get_running_loop().time()
                    self._stable.set()
            case _:
                return  # a newer AgentAPI may send other statuses
        self._status_known.set()

    def _set_working(self) -> None:
        if self._state != AgentState.WORKING:
            self._state = AgentState.WORKING
            self._report([], self._guess(AgentState.WORKING, "The agent is working."))

    async def _flush_regularly(self) -> None:
        """Report changed messages at regular intervals, and whether the agent has become idle."""
        while True:
            await asyncio.sleep(FLUSH_EVERY)
            await self._wait_allowed()
            self._flush()
            if self._is_quiet and self._state != AgentState.IDLE:
                self._state = AgentState.IDLE
                self._report([], self._guess(AgentState.IDLE, shorten(self._latest)))

    @property
    def _is_quiet(self) -> bool:
        quiet = asyncio.get_running_loop().time() - self._stable_since
        return self._has_begun.is_set() and self._stable.is_set() and quiet >= self._context.run.idle_after

    async def _wait_allowed(self) -> None:
        """Let others run, and wait until more may be reported; AgentAPI's events wait in the connection meanwhile."""
        await asyncio.sleep(0)
        await self._context.outbox.wait_room()
        while not self._context.log_budget.has_room:  # noqa: ASYNC110 - a budget sends no event
            await asyncio.sleep(BUDGET_POLL_INTERVAL)

    def _flush(self) -> None:
        """Report changed messages; after a reconnect AgentAPI sends all messages again, most of them unchanged."""
        entries = []
        for message_id, entry in self._changed.items():
            digest = hash((entry.type, entry.content))
            if self._reported.get(message_id) != digest:
                self._reported.pop(message_id, None)
                self._reported[message_id] = digest
                entries.append(entry)
        while len(self._reported) > MAX_MESSAGES:
            del self._reported[next(iter(self._reported))]
        self._changed.clear()
        self._changed_size = 0
        self._report(entries)

    def _report(self, entries: list[LogEntry], *reports: Report) -> None:
        size = sum(len(entry.content.encode(errors="replace")) for entry in entries)
        self._context.log_budget.spend(len(entries) + len(reports), size)
        while len(entries) > ENTRIES_PER_REPORT:
            self._context.reporter.log(entries[:ENTRIES_PER_REPORT])
            entries = entries[ENTRIES_PER_REPORT:]
        if entries or reports:
            self._shown += 1
            self._context.reporter.log(entries, *reports, checkpoint=self._checkpoint())

    def _guess(self, state: AgentState, message: str) -> Report:
        return self._context.reporter.status_report(state, message, guessed_from="its screen, which AgentAPI watches")

    def _checkpoint(self) -> Checkpoint:
        return {
            "build": self._context.reporter.build_number,
            "state": str(self._state),
            "errors": self._errors,
            "errors_seen": list(self._errors_seen),
            "posted": self._posted_texts.save(),
        }

    async def _type_escape(self) -> None:
        """Type Escape into the agent's terminal; repeat it until AgentAPI says that it has done so.

        A message of type ``raw`` is written to the terminal as it is, at any time, but not before the message that is
        being posted (``createMessage`` in lib/httpapi/server.go).
        """
        while True:
            with suppress(httpx.HTTPError):
                message = {"content": ESCAPE, "type": "raw"}
                answer = await agentapi_client.post(self._client, message, REACTION_TIMEOUT)
                if answer.is_success:
                    return
            await asyncio.sleep(_QUIET_POLL_INTERVAL)

    async def _wait_quiet(self, seconds: float, *, unless: Callable[[], bool] = lambda: False) -> None:
        """Wait until the screen has been stable for that long since now, or ``unless`` returns True."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        while not unless() and (  # noqa: ASYNC110 - time itself sends no event
            not self._stable.is_set() or loop.time() - max(since, self._stable_since) < seconds
        ):
            await asyncio.sleep(_QUIET_POLL_INTERVAL)

    async def _wait_stable(self, deadline: float) -> None:
        """Wait until the agent is stable. Raise ``NotDelivered`` after ``deadline``."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._stable.wait()
        except TimeoutError as error:
            raise NotDelivered(f"The agent did not become ready for the input within {STABLE_TIMEOUT:g} s.") from error
        if asyncio.get_running_loop().time() > deadline:
            raise NotDelivered("The agent reported that it was ready, but rejected the input as busy.")

    async def _post(self, text: str) -> bool:
        """Post a message and return False if the agent is busy, else True. Raise the same errors as ``deliver``."""
        echoed = asyncio.Event()
        self._posted = (text, self._highest_id, echoed)
        message = {"content": text, "type": "user"}
        request = agentapi_client.post(self._client, message, MAX_TURN)  # with ``acp`` the answer comes after the turn
        post = asyncio.create_task(request)
        self._posts.add(post)
        post.add_done_callback(self._posts.discard)
        try:
            await _wait_either(post, echoed, ACCEPT_TIMEOUT)
        finally:
            self._posted = None
        if echoed.is_set():
            post.add_done_callback(_retrieve)
            return True
        if not post.done():
            post.add_done_callback(_retrieve)
            raise DeliveryUnknown(
                f"It is unknown whether the agent received the input: AgentAPI did not respond in {ACCEPT_TIMEOUT:g} s."
            )
        return _is_accepted(post)


async def _wait_either(post: asyncio.Task[AgentApiResponse], echoed: asyncio.Event, seconds: float) -> None:
    """Wait until the response arrives, the message is echoed, or the time is over."""
    echo_wait = asyncio.create_task(echoed.wait())
    try:
        await asyncio.wait({post, echo_wait}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        echo_wait.cancel()


def _is_accepted(post: asyncio.Task[AgentApiResponse]) -> bool:
    """Return False if the response says that the agent is busy, else True. Raise the same errors as ``deliver``."""
    try:
        answer = post.result()
    except (httpx.ConnectError, httpx.ConnectTimeout):
        return False
    except httpx.HTTPError as error:
        raise DeliveryUnknown(
            f"It is unknown whether the agent received the input: the connection broke ({type(error).__name__})."
        ) from error
    if answer.is_success:
        return True
    if BUSY in answer.text:
        return False
    if answer.status >= httpx.codes.INTERNAL_SERVER_ERROR and "must" not in answer.text:
        raise DeliveryUnknown(f"It is unknown whether the agent received the input: {_describe(answer)}")
    raise NotDelivered(f"The agent rejected the input: {_describe(answer)}")


def _describe(answer: AgentApiResponse) -> str:
    return f"AgentAPI responded with {answer.status} {answer.text[:200]}"


def _retrieve(post: asyncio.Task[AgentApiResponse]) -> None:
    """Retrieve the outcome of a post that is not awaited any more, or asyncio warns that it was never retrieved."""
    if not post.cancelled():
        post.exception()


def _spoken_lines(lines: list[str]) -> list[str]:
    """Return the lines of a screen without bullets and without those about the agent's progress."""
    stripped = [line.strip() for line in lines]
    return [line.removeprefix("● ") for line in stripped if not _PROGRESS.match(line)]


def _parse_time(value: object) -> datetime | None:
    """Return the time of a message, or None if it cannot be parsed."""
    with suppress(ValueError):
        return parse_instant(str(value))
    return None
