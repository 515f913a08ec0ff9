"""What Claude Code's events say: entries of the log, the state, what was used, and the session; without I/O.

An event is a JSON object on a line: ``system`` (its ``init`` begins a turn and names the session), ``assistant`` and
``user`` (a message of the model; results of tools), and ``result`` (the end of a turn). Others are ignored. What is
needed to go on after a restart of the runner is part of a checkpoint.
https://code.claude.com/docs/en/headless
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from taskherd.domain.reports import AgentState, LogKind, LogSource, LogStatus
from taskherd.domain.usage import MAX_MODELS
from taskherd.messages.limits import MAX_MODEL_CHARACTERS, MAX_TITLE_CHARACTERS
from taskherd.messages.texts import sanitize_name
from taskherd.runner.agents.usage_numbers import as_cost, is_count
from taskherd.runner.agents.words import last_with_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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
_KINDS: Final[Mapping[str, str]] = {
    "Bash": "execute",
    "BashOutput": "execute",
    "Edit": "edit",
    "Glob": "search",
    "Grep": "search",
    "MultiEdit": "edit",
    "NotebookEdit": "edit",
    "Read": "read",
    "WebFetch": "fetch",
    "WebSearch": "fetch",
    "Write": "edit",
}
"""The kinds of Claude Code's tools, in the words of the Agent Client Protocol; others are ``other``."""
_SUBJECTS: Final = ("command", "file_path", "notebook_path", "pattern", "url", "query", "description")
"""The inputs of tools that say what a call is about, the most telling first."""
_COUNTERS: Final[Mapping[str, str]] = {
    "inputTokens": "input_tokens",
    "outputTokens": "output_tokens",
    "cacheReadInputTokens": "cache_read_tokens",
    "cacheCreationInputTokens": "cache_write_tokens",
}
_CONTEXT: Final = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
"""The tokens that are in the context after a message of the model."""


class ClaudeStream:
    """The conversation, state and usage of one build's Claude Code."""

    def __init__(self, checkpoint: Mapping[str, Any]) -> None:
        self._next: int = checkpoint.get("next", 0)
        self._calls: dict[str, dict[str, Any]] = {**checkpoint.get("calls", {})}
        self._context: dict[str, int] = {**checkpoint.get("context", {})}
        self.session: str | None = checkpoint.get("session")
        self.in_turn: bool = checkpoint.get("in_turn", False)
        self.state: str = checkpoint.get("state", "")
        self.last_words: str = checkpoint.get("last", "")
        self._changed: dict[int, dict[str, Any]] = {}
        self._usage: dict[str, dict[str, Any]] = {}
        """By model, what was told and not reported yet."""

    def checkpoint(self) -> dict[str, Any]:
        """Return what the next runner needs."""
        return {
            "next": self._next,
            "calls": self._calls,
            "context": self._context,
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
        self.add(LogSource.INPUT, text)
        self.in_turn, self.state, self.last_words = True, AgentState.WORKING, ""

    def add(self, source: LogSource, text: str, kind: LogKind | None = None) -> None:
        """Add an entry to the log."""
        self._changed[self._next] = {"entry": self._next, "source": source, "text": text, "kind": kind}
        self._next += 1

    def apply(self, event: Mapping[str, Any]) -> None:
        """Apply an event. Raise an error of Python's if it has another form than events have."""
        match event.get("type"):
            case "system" if event.get("subtype") == "init":
                self._begin(event)
            case "assistant":
                self._begin({})
                self._apply_message(event)
            case "user":
                for block in _blocks(event):
                    if block.get("type") == "tool_result":
                        self._end_call(block)
            case "result":
                self._end_turn(event)
            case _:
                return

    def close_calls(self) -> None:
        """Close tool calls that the agent left unfinished."""
        for call in self._calls.values():
            self._changed[call["entry"]] = {**call, "status": None}
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

    def _begin(self, event: Mapping[str, Any]) -> None:
        session = event.get("session_id")
        if isinstance(session, str) and 0 < len(session) <= MAX_ID:
            self.session = session
        self.in_turn, self.state = True, AgentState.WORKING

    def _apply_message(self, event: Mapping[str, Any]) -> None:
        for block in _blocks(event):
            match block.get("type"):
                case "text":
                    text = str(block["text"])[:MAX_TEXT]
                    self.add(LogSource.OUTPUT, text, LogKind.MESSAGE)
                    self.last_words = last_with_words(text.split("\n"), self.last_words)
                case "thinking":
                    self.add(LogSource.OUTPUT, str(block["thinking"])[:MAX_TEXT], LogKind.THOUGHT)
                case "tool_use":
                    self._begin_call(block)
                case _:
                    continue
        usage = event["message"].get("usage")
        if isinstance(usage, dict) and event.get("parent_tool_use_id") is None:  # that of a subagent is another context
            used = sum(usage[name] for name in _CONTEXT if is_count(usage.get(name)))
            self._context["context_used"] = used

    def _begin_call(self, block: Mapping[str, Any]) -> None:
        name, given = str(block["name"])[:MAX_ID], block.get("input")
        subjects = [given[each] for each in _SUBJECTS if given.get(each)] if isinstance(given, dict) else []
        title = f"{name}: {' '.join(str(subjects[0]).split())}" if subjects else name
        call = {"entry": self._next, "title": title[:MAX_TITLE_CHARACTERS], "kind": _KINDS.get(name, "other")}
        self._calls[str(block["id"])[:MAX_ID]] = call
        self._changed[self._next] = {**call, "status": LogStatus.IN_PROGRESS}
        self._next += 1
        while len(self._calls) > MAX_CALLS:
            del self._calls[next(iter(self._calls))]

    def _end_call(self, block: Mapping[str, Any]) -> None:
        call = self._calls.pop(str(block["tool_use_id"])[:MAX_ID], None)
        if call is not None:
            status = LogStatus.FAILED if block.get("is_error") else LogStatus.COMPLETED
            text = _text_of(block.get("content"))
            self._changed[call["entry"]] = {**call, "status": status, "text": text[:MAX_CALL_TEXT]}

    def _end_turn(self, event: Mapping[str, Any]) -> None:
        self.close_calls()
        self.in_turn = False
        words = event.get("result")
        if isinstance(words, str):
            self.last_words = last_with_words(words.split("\n"), self.last_words)
        is_error = bool(event.get("is_error")) or event.get("subtype") != "success"
        if is_error:
            reason = words if isinstance(words, str) and words else str(event.get("subtype"))
            self.last_words = f"The agent could not carry out its turn: {reason}"[:MAX_TITLE_CHARACTERS]
            self.add(LogSource.OUTPUT, f"taskherd: {self.last_words}", LogKind.NOTICE)
        self.state = AgentState.FAILED if is_error else AgentState.IDLE
        self._apply_usage(event)

    def _apply_usage(self, event: Mapping[str, Any]) -> None:
        """Take the totals of the process, by model; those of earlier builds' processes are not in them."""
        by_model = event.get("modelUsage")
        size = 0
        for model, counts in list(by_model.items())[: MAX_MODELS - 1] if isinstance(by_model, dict) else ():
            fields: dict[str, Any] = {
                field: counts[name] for name, field in _COUNTERS.items() if is_count(counts.get(name))
            }
            fields["cost"] = as_cost(counts.get("costUSD"), "USD")
            self._usage[sanitize_name(model, {}).strip()[:MAX_MODEL_CHARACTERS]] = fields
            size = max(size, counts["contextWindow"] if is_count(counts.get("contextWindow")) else 0)
        if size:
            self._context["context_size"] = size
        cost = None if by_model else as_cost(event.get("total_cost_usd"), "USD")
        if cost is not None or self._context:
            self._usage[""] = {"cost": cost, **self._context}


def _blocks(event: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Return the blocks in a message's content; a text alone is one block."""
    content = event["message"]["content"]
    if isinstance(content, str):
        return ({"type": "text", "text": content},)
    return [block for block in content if isinstance(block, dict)]


def _text_of(content: object) -> str:
    """Return the result of a tool as text."""
    if isinstance(content, list):
        return "\n".join(str(each.get("text", "")) for each in content if isinstance(each, dict))
    return "" if content is None else str(content)


def _entry(reporter: Reporter, item: Mapping[str, Any]) -> LogEntry:
    """Return the log entry of a text or tool call."""
    if "title" not in item:
        return reporter.entry(item["entry"], item["source"], item["text"], kind=item["kind"])
    lines = [item["title"] + (" (failed)" if item["status"] == LogStatus.FAILED else ""), item.get("text", "")]
    return reporter.entry(
        item["entry"],
        LogSource.OUTPUT,
        "\n".join(line for line in lines if line),
        kind=LogKind.TOOL_CALL,
        title=item["title"],
        status=item["status"],
        data={"kind": item["kind"]},
    )
