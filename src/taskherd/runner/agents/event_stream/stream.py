"""What an agent's own events lead to: entries of the log, the state, what was used, and the session; without I/O.

What is needed to go on after a restart of the runner is part of a checkpoint.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Final

from taskherd.domain.reports import AgentState, LogKind, LogSource, LogStatus
from taskherd.messages.limits import MAX_TITLE_CHARACTERS
from taskherd.runner.agents.words import MAX_WORDS, last_sentence
from taskherd.runner.log_ids import LAST_OUTPUT_ID

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.domain.reports import LogEntry, Report
    from taskherd.runner.reporter import Reporter

MAX_CALLS: Final = 64
"""Maximum number of open tool calls that are remembered, the latest."""
MAX_TEXT: Final = 16 * 1024
"""Maximum number of characters of a message in the log."""
MAX_CALL_TEXT: Final = 4 * 1024
"""Maximum number of characters of a tool's result in the log."""
MAX_ID: Final = 200
STARTED: Final = "The agent has begun its turn."
_NOT_DATA: Final = frozenset({"entry", "title", "status", "text"})


class AgentEventStream(ABC):
    """The conversation, state and usage of one build's agent; ``apply`` of each kind says what its events mean."""

    guessed_from: ClassVar[str]
    """What the state is known from, for people."""

    def __init__(self, checkpoint: Mapping[str, Any]) -> None:
        self._next: int = checkpoint.get("next", 0)
        self._input: int | None = checkpoint.get("input")
        """The entry of the latest input."""
        self._calls: dict[str, dict[str, Any]] = {**checkpoint.get("calls", {})}
        self.session: str | None = checkpoint.get("session")
        self.in_turn: bool = checkpoint.get("in_turn", False)
        self.state: str = checkpoint.get("state", "")
        self.last_words: str = checkpoint.get("last", "")
        self._changed: dict[int, dict[str, Any]] = {}
        self.shown = 0
        """How often an entry was added or changed."""
        self._usage: dict[str, dict[str, Any]] = {}
        """By model, what was told and not reported yet."""

    @abstractmethod
    def apply(self, event: Mapping[str, Any]) -> None:
        """Apply an event. Raise an error of Python's if it has another form than events have."""

    def checkpoint(self) -> dict[str, Any]:
        """Return what the next runner needs."""
        return {
            "next": self._next,
            "input": self._input,
            "calls": self._calls,
            "session": self.session,
            "in_turn": self.in_turn,
            "state": self.state,
            "last": self.last_words[:MAX_TITLE_CHARACTERS],
        }

    @property
    def activity(self) -> str:
        """What the agent is doing: the latest tool call that runs, else its last words."""
        return next((call["title"] for call in reversed(self._calls.values())), self.last_words) or STARTED

    def begin_turn(self, text: str) -> None:
        """Add an input, with which a turn begins."""
        self._input = self._next
        self.add(LogSource.INPUT, text)
        self.in_turn, self.state, self.last_words = True, AgentState.WORKING, ""

    def take_back_turn(self) -> None:
        """Let the next input take the place of the latest one, which was never given, if no entry has followed it."""
        if self._input == self._next - 1:
            self._next = self._input

    def add(self, source: LogSource, text: str, kind: LogKind | None = None) -> None:
        """Add an entry to the log."""
        self._show({"entry": self._next, "source": source, "text": text, "kind": kind})
        self._next += 1

    def add_last_output(self, words: str) -> None:
        """Add what the agent wrote last, once: an entry of a runner that was killed meanwhile is replaced."""
        text = f"taskherd: the agent's last output:\n{words}"
        self._show({"entry": LAST_OUTPUT_ID, "source": LogSource.OUTPUT, "text": text, "kind": LogKind.NOTICE})

    def close_calls(self) -> None:
        """Close tool calls that the agent left unfinished."""
        for call in self._calls.values():
            self._show({**call, "status": None})
        self._calls.clear()

    def take_entries(self, reporter: Reporter) -> list[LogEntry]:
        """Return the entries that were added or changed since the last call."""
        entries = [_entry(reporter, item) for item in self._changed.values()]
        self._changed.clear()
        return entries

    def take_usage(self, reporter: Reporter) -> list[Report]:
        """Return reports of what was used and not reported yet."""
        reports = [reporter.usage_report(model=model or None, **fields) for model, fields in self._usage.items()]
        self._usage.clear()
        return reports

    def _show(self, item: dict[str, Any]) -> None:
        """Add an entry, or replace it."""
        self._changed[item["entry"]] = item
        self.shown += 1

    def _set_session(self, session: object) -> None:
        if isinstance(session, str) and 0 < len(session) <= MAX_ID:
            self.session = session

    def _say(self, text: str) -> None:
        """Add a message of the agent."""
        self.add(LogSource.OUTPUT, text[:MAX_TEXT], LogKind.MESSAGE)

    def _note_words(self, text: str) -> None:
        """Note the last sentence of what the agent has said; once for an event, since it takes milliseconds."""
        self.last_words = last_sentence(text[-MAX_WORDS:], self.last_words)

    def _think(self, text: str) -> None:
        """Add a thought of the agent."""
        self.add(LogSource.OUTPUT, text[:MAX_TEXT], LogKind.THOUGHT)

    def _notice(self, text: str) -> None:
        """Add a notice of the runner."""
        self.add(LogSource.OUTPUT, f"taskherd: {text}"[:MAX_TEXT], LogKind.NOTICE)

    def _begin_call(self, call_id: str, title: str, kind: str, **data: Any) -> None:
        """Add a tool call that runs."""
        call = {"entry": self._next, "title": title[:MAX_TITLE_CHARACTERS], "kind": kind, **data}
        self._calls[call_id[:MAX_ID]] = call
        self._show({**call, "status": LogStatus.IN_PROGRESS})
        self._next += 1
        while len(self._calls) > MAX_CALLS:
            del self._calls[next(iter(self._calls))]

    def _end_call(self, call_id: str, text: str, *, has_failed: bool) -> None:
        """Say how a tool call has ended; one that is not known is left out."""
        call = self._calls.pop(call_id[:MAX_ID], None)
        if call is not None:
            status = LogStatus.FAILED if has_failed else LogStatus.COMPLETED
            self._show({**call, "status": status, "text": text[:MAX_CALL_TEXT]})

    def _end_turn(self, failure: str | None) -> None:
        """End the turn; ``failure`` says why it could not be carried out, None: it was."""
        self.close_calls()
        self.in_turn, self.state = False, AgentState.IDLE
        if failure is not None:
            self.state = AgentState.FAILED
            self.last_words = f"The agent could not carry out its turn: {failure}"[:MAX_TITLE_CHARACTERS]
            self._notice(self.last_words)


def _entry(reporter: Reporter, item: Mapping[str, Any]) -> LogEntry:
    """Return the log entry of a text, plan or tool call."""
    if "title" not in item:
        return reporter.entry(item["entry"], item["source"], item["text"], kind=item["kind"], data=item.get("data"))
    lines = [item["title"] + (" (failed)" if item["status"] == LogStatus.FAILED else ""), item.get("text", "")]
    return reporter.entry(
        item["entry"],
        LogSource.OUTPUT,
        "\n".join(line for line in lines if line),
        kind=LogKind.TOOL_CALL,
        title=item["title"],
        status=item["status"],
        data={name: value for name, value in item.items() if name not in _NOT_DATA},
    )
