"""What an agent tells in a session becomes log entries: messages, thoughts, tool calls and plans.

An entry is replaced as what it shows goes on. Everything here is bounded, and what is needed to go on after a restart
of the runner is part of its checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from acp import schema

from taskherd.domain.reports import LogKind, LogSource, LogStatus
from taskherd.messages.texts import canonical_data
from taskherd.runner.agents.words import MAX_WORDS, last_sentence

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskherd.domain.reports import LogEntry
    from taskherd.runner.reporter import Reporter

MAX_MESSAGE: Final = 16 * 1024
"""Number of characters of a message after which it goes on in another entry."""
MAX_CALL_TEXT: Final = 4 * 1024
"""Maximum number of characters of a tool call's text in the log."""
MAX_CALLS: Final = 64
"""Maximum number of tool calls that are remembered, the latest; a later update of an older one is a new entry."""
MAX_DETAILED: Final = 8
"""Maximum number of tool calls, the latest, whose contents are remembered for further updates."""
MAX_CHANGES: Final = 64
"""Number of entries that were added or changed at which they are to be reported at once."""
MAX_LOCATIONS: Final = 10
MAX_PLAN: Final = 50
MAX_SHOWN_TERMINALS: Final = 2
"""Maximum number of commands of a tool call whose output the log shows, of each at most ``MAX_CALL_TEXT`` bytes."""
MAX_DIFF: Final = 6 * 1024
"""Maximum number of characters of each side of a diff."""
MAX_PATH: Final = 500
MAX_LINE: Final = 2**63 - 1
"""Maximum number of a line in a location, and that of its negative: a checkpoint holds no larger integers."""
MAX_ID: Final = 200
"""Number of characters of an agent's ids of messages and tool calls that are compared."""
STARTED: Final = "The agent has begun its turn."
_MARKS: Final = {"completed": "[x]", "in_progress": "[>]", "pending": "[ ]"}
_CHUNKS: Final = (schema.AgentMessageChunk, schema.AgentThoughtChunk)


class Conversation:
    """The conversation of one build's agent."""

    def __init__(self, checkpoint: dict[str, Any]) -> None:
        self._next: int = checkpoint.get("next", 0)
        self._message: dict[str, Any] | None = checkpoint.get("message")
        self._calls: dict[str, dict[str, Any]] = checkpoint.get("calls", {})
        self._plan: dict[str, Any] | None = checkpoint.get("plan")
        self._last: str = checkpoint.get("last", "")
        self._changed: dict[int, dict[str, Any]] = {}

    def checkpoint(self) -> dict[str, Any]:
        """Return what the next runner needs."""
        return {
            "next": self._next,
            "message": self._message,
            "calls": self._calls,
            "plan": self._plan,
            "last": self._last,
        }

    @property
    def last_words(self) -> str:
        """The last sentence with words that the agent wrote."""
        return self._last

    @property
    def activity(self) -> str:
        """What the agent is doing: the plan's entry in progress, else the running tool call, else its last words.

        A call that is pending counts as running if no other is: some agents leave it at that until it has completed.
        """
        for entry in self._plan["entries"] if self._plan else ():
            if entry["status"] == "in_progress":
                return str(entry["content"])
        for status in (LogStatus.IN_PROGRESS, LogStatus.PENDING):
            titles = [call["title"] for call in self._calls.values() if call["status"] == status]
            if titles:
                return str(titles[-1])
        return self._last or STARTED

    @property
    def has_changes(self) -> bool:
        """True if there are entries to report."""
        return bool(self._changed)

    @property
    def has_many_changes(self) -> bool:
        """True if there are so many entries to report that this must not wait."""
        return len(self._changed) >= MAX_CHANGES

    def begin_turn(self, text: str) -> None:
        """Add an input, with which a turn begins."""
        self._message, self._plan, self._last = None, None, ""
        self._change({"entry": self._allocate(), "input": text})

    def take_back_turn(self) -> None:
        """Let the next input take the place of the latest entry, which is that of an input that was never given."""
        self._next -= 1

    def add_notice(self, text: str, *, entry: int | None = None) -> None:
        """Add a notice by the runner; as this ``entry``, which it may replace, if one is given."""
        self._end_message()
        self._change({"entry": self._allocate() if entry is None else entry, "notice": f"taskherd: {text}"})

    def tool(self, call_id: str) -> dict[str, Any] | None:
        """Return what is known of a tool call: ``title``, ``kind``."""
        return self._calls.get(call_id[:MAX_ID])

    def describe(self, call_id: str) -> str:
        """Return what a tool call is about to do, as far as its content says: its text, and the files that it changes.

        Lines before a change begin with ``-``, those after it with ``+``.
        """
        call = self._calls.get(call_id[:MAX_ID], {})
        lines = [call["text"]] if call.get("text") else []
        for diff in call.get("diffs", ()):
            lines.append(f"changes {diff['path']}")
            lines += [f"-{line}" for line in diff["old"].splitlines()]
            lines += [f"+{line}" for line in diff["new"].splitlines()]
        return "\n".join(lines)

    def show_terminal(self, terminal: str, read: Callable[[], str]) -> None:
        """Show what a command of the agent wrote, which has ended, in the tool calls that refer to it."""
        for call in self._calls.values():
            if call.get("terminals", {}).get(terminal, "") is None:
                call["terminals"][terminal] = read()
                self._change(call)

    def apply(self, update: object) -> None:
        """Apply a session update; those that show nothing in a log are ignored."""
        match update:
            case schema.AgentMessageChunk() | schema.AgentThoughtChunk():
                self._add_chunk(update)
            case schema.ToolCallStart() | schema.ToolCallProgress() | schema.ToolCallUpdate():
                self._end_message()
                self._apply_call(update)
            case schema.AgentPlanUpdate():
                self._apply_plan(update)
            case _:
                return

    def end_turn(self) -> None:
        """Close what is open: a message, and tool calls that the agent left unfinished."""
        self._end_message()
        for call in self._calls.values():
            if call["status"] in {LogStatus.PENDING, LogStatus.IN_PROGRESS}:
                call["status"] = None
                self._change(call)

    def take_entries(self, reporter: Reporter) -> list[LogEntry]:
        """Return the entries that were added or changed since the last call."""
        entries = [_entry(reporter, item) for item in self._changed.values()]
        self._changed.clear()
        return entries

    def _allocate(self) -> int:
        self._next += 1
        return self._next - 1

    def _change(self, item: dict[str, Any]) -> None:
        self._changed[item["entry"]] = item

    def _add_chunk(self, chunk: schema.AgentMessageChunk | schema.AgentThoughtChunk) -> None:
        kind = LogKind.MESSAGE if isinstance(chunk, schema.AgentMessageChunk) else LogKind.THOUGHT
        message_id = (getattr(chunk, "message_id", None) or "")[:MAX_ID]
        text, message = _text_of(chunk.content), self._message
        is_continued = message is not None and (message["kind"], message["id"]) == (kind, message_id)
        if text and not is_continued:
            self._end_message()
        while text:
            if message is None or not is_continued or len(message["text"]) >= MAX_MESSAGE:
                message = {"entry": self._allocate(), "kind": kind, "id": message_id, "text": ""}
                is_continued = True
            room = MAX_MESSAGE - len(message["text"])
            message["text"] += text[:room]
            text = text[room:]
            self._change(message)
        self._message = message
        self._note_words(goes_on=True)

    def _end_message(self) -> None:
        """Let what the agent says next be another message."""
        self._note_words(goes_on=False)
        self._message = None

    def _note_words(self, *, goes_on: bool) -> None:
        """Note the last sentence of the message that is open, if one is."""
        if self._message is not None and self._message["kind"] == LogKind.MESSAGE:
            self._last = last_sentence(self._message["text"][-MAX_WORDS:], self._last, goes_on=goes_on)

    def _apply_call(self, update: schema.ToolCall | schema.ToolCallUpdate) -> None:
        call_id = update.tool_call_id[:MAX_ID]
        call = self._calls.pop(call_id, None)
        if call is None:
            call = {"entry": self._allocate(), "title": "A tool call", "kind": "other", "status": LogStatus.PENDING}
        self._calls[call_id] = call
        call["title"] = (update.title or call["title"])[:MAX_PATH]
        call["kind"] = update.kind or call["kind"]
        call["status"] = LogStatus(update.status) if update.status else call["status"]
        if update.locations is not None:
            places = update.locations[:MAX_LOCATIONS]
            call["locations"] = [{"path": place.path[:MAX_PATH], "line": _line_of(place)} for place in places]
        if update.content is not None:
            call["text"], call["diffs"] = _content_of(update.content)
            known = call.get("terminals", {})
            call["terminals"] = {each: known.get(each) for each in _terminals_of(update.content)}
        self._change(call)
        while len(self._calls) > MAX_CALLS:
            del self._calls[next(iter(self._calls))]
        for old in list(self._calls.values())[:-MAX_DETAILED]:
            if old["entry"] not in self._changed:
                old.pop("text", None)
                old.pop("diffs", None)
                old.pop("terminals", None)
                old.pop("locations", None)

    def _apply_plan(self, update: schema.AgentPlanUpdate) -> None:
        entries = [
            {"content": entry.content[:MAX_PATH], "status": entry.status, "priority": entry.priority}
            for entry in update.entries[:MAX_PLAN]
        ]
        if self._plan is None:
            self._end_message()
            self._plan = {"entry": self._allocate(), "entries": entries}
        self._plan["entries"] = entries
        self._change(self._plan)


def _entry(reporter: Reporter, item: dict[str, Any]) -> LogEntry:
    """Return the log entry of an input, notice, plan, message or tool call."""
    number = item["entry"]
    if "input" in item:
        return reporter.entry(number, LogSource.INPUT, item["input"])
    if "notice" in item:
        return reporter.entry(number, LogSource.OUTPUT, item["notice"], kind=LogKind.NOTICE)
    if "entries" in item:
        lines = [f"{_MARKS[each['status']]} {each['content']}" for each in item["entries"]]
        data = _fitting({"entries": item["entries"]})
        return reporter.entry(number, LogSource.OUTPUT, "\n".join(lines), kind=LogKind.PLAN, data=data)
    if "id" in item:
        return reporter.entry(number, LogSource.OUTPUT, item["text"], kind=LogKind(item["kind"]))
    return _call_entry(reporter, item)


def _call_entry(reporter: Reporter, call: dict[str, Any]) -> LogEntry:
    lines = [call["title"] + (" (failed)" if call["status"] == LogStatus.FAILED else "")]
    lines += [f"changes {diff['path']}" for diff in call.get("diffs", ())]
    if call.get("text"):
        lines.append(call["text"])
    lines += filter(None, call.get("terminals", {}).values())
    data: dict[str, Any] = {"kind": call["kind"]}
    if call.get("locations"):
        data["locations"] = [
            {name: value for name, value in place.items() if value is not None} for place in call["locations"]
        ]
    if diffs := call.get("diffs"):
        data["diff"] = diffs[0]
        if len(diffs) > 1:
            data["also_changes"] = [diff["path"] for diff in diffs[1:]]
    status = LogStatus(call["status"]) if call["status"] else None
    return reporter.entry(
        call["entry"],
        LogSource.OUTPUT,
        "\n".join(lines),
        kind=LogKind.TOOL_CALL,
        title=call["title"],
        status=status,
        data=_fitting(data),
    )


def _fitting(data: dict[str, Any]) -> dict[str, Any] | None:
    """Return data that fits a log entry: its diff is cut shorter, or it is left out."""
    limit = MAX_DIFF
    while limit:
        try:
            canonical_data(data, {})
        except ValueError:
            limit //= 2
            if "diff" not in data:
                return None
            diff = data["diff"]
            data = {**data, "diff": {**diff, "old": _cut(diff["old"], limit), "new": _cut(diff["new"], limit)}}
        else:
            return data
    return None


def _content_of(content: list[Any]) -> tuple[str, list[dict[str, Any]]]:
    """Return the text and the diffs in a tool call's content."""
    texts: list[str] = []
    diffs: list[dict[str, Any]] = []
    for part in content:
        match part:
            case schema.ContentToolCallContent():
                texts.append(_text_of(part.content))
            case schema.FileEditToolCallContent() if len(diffs) < MAX_LOCATIONS:
                limit = MAX_DIFF if not diffs else 0  # only the first is shown
                old, new = _cut(part.old_text or "", limit), _cut(part.new_text, limit)
                diffs.append({"path": part.path[:MAX_PATH], "old": old, "new": new})
            case _:
                continue
    return _cut("\n".join(texts), MAX_CALL_TEXT), diffs


def _line_of(place: schema.ToolCallLocation) -> int | None:
    """Return the line of a location unless it is too large; the schema takes strings of digits, of any length."""
    return place.line if place.line is not None and abs(place.line) <= MAX_LINE else None


def _terminals_of(content: list[Any]) -> list[str]:
    """Return the ids of the first commands to which a tool call's content refers."""
    ids = [part.terminal_id for part in content if isinstance(part, schema.TerminalToolCallContent)]
    return [each for each in ids if len(each) <= MAX_ID][:MAX_SHOWN_TERMINALS]


def _text_of(content: Any) -> str:
    """Return a block of content as readable text."""
    match content:
        case schema.TextContentBlock():
            return content.text
        case schema.ResourceContentBlock():
            return f"[{content.name}]({content.uri})"
        case schema.EmbeddedResourceContentBlock():
            return getattr(content.resource, "text", None) or f"[{content.resource.uri}]"
        case schema.ImageContentBlock() | schema.AudioContentBlock():
            return f"[{content.type}, {content.mime_type}]"
        case _:
            return ""


def _cut(text: str, limit: int) -> str:
    """Return a text with at most about ``limit`` characters, which says how many are missing."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit} more characters)"
