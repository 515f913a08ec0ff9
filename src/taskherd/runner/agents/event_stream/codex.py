"""What the events of ``codex exec --json`` say.

An event is a JSON object on a line: ``thread.started`` names the session, ``turn.started`` begins the turn, an item
(``item.started``, ``item.updated``, ``item.completed``) is a message, a thought, a tool call, a plan or an error, and
``turn.completed`` or ``turn.failed`` ends the turn, and with it the process. Others are ignored.
https://developers.openai.com/codex/noninteractive

The tokens in ``turn.completed`` are those of the session, which a resumed one goes on with: what counts for a build is
how much they have risen (ADR 55).
"""

from __future__ import annotations

import shlex
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

import orjson

from taskherd.domain.reports import AgentState, LogKind, LogSource
from taskherd.messages.limits import MAX_TITLE_CHARACTERS, MAX_TOKENS
from taskherd.runner.agents.event_stream.stream import AgentEventStream
from taskherd.runner.agents.usage_numbers import is_count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_COMMAND: Final = 1_000
"""Maximum number of characters of a command that are looked at: what splits it into words needs quadratic time."""
MAX_PLACES: Final = 16
"""Maximum number of files in the data of an entry about changed files; with the longest names they fit it."""
MAX_STEPS: Final = 30
"""Maximum number of steps of a plan in the log; with the longest texts they fit the data of an entry."""
MAX_STEP: Final = 100
"""Maximum number of characters of a step."""
_SHELL_ARGUMENTS: Final = 3
"""The arguments of a shell that runs a command: its name, the option -c or -lc, and the command."""
_VERBS: Final[Mapping[object, str]] = {"add": "Write", "delete": "Delete"}
"""What a change does to a file, for people; others edit it."""


class CodexStream(AgentEventStream):
    """The conversation, state and usage of one build's Codex."""

    guessed_from: ClassVar[str] = "Codex's stream of events"

    def __init__(self, checkpoint: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
        """Go on from this build's checkpoint; without one, count from where the ``earlier`` build's session stood."""
        super().__init__(checkpoint)
        told = checkpoint or earlier
        self._told_session: str | None = told.get("told_session")
        self._told: dict[str, int] = {**told.get("told", {})}
        """The tokens of that session, as they were told last."""
        self._used: dict[str, int] = {**checkpoint.get("used", {})}
        """The tokens since the build began."""
        self._plan: dict[str, Any] | None = checkpoint.get("plan")
        self._error: str = checkpoint.get("error", "")
        """The error that was told last, which Codex repeats while it tries again."""

    def checkpoint(self) -> dict[str, Any]:
        """Return what the next runner, and the next build, need."""
        own = {"told_session": self._told_session, "told": self._told, "used": self._used, "plan": self._plan}
        return {**super().checkpoint(), **own, "error": self._error}

    def apply(self, event: Mapping[str, Any]) -> None:
        """Apply an event. Raise an error of Python's if it has another form than events have."""
        match event.get("type"):
            case "thread.started":
                self._set_session(event.get("thread_id"))
            case "turn.started":
                self.in_turn, self.state, self._error = True, AgentState.WORKING, ""
            case "item.started" | "item.updated":
                self._apply_item(event["item"], has_ended=False)
            case "item.completed":
                self._apply_item(event["item"], has_ended=True)
            case "turn.completed":
                self._end_turn(None)
                self._apply_usage(event["usage"])
            case "turn.failed":
                self._end_turn(_words(event["error"]["message"]))
            case "error":
                self._apply_error(_words(event["message"]))
            case _:
                return

    def _apply_error(self, words: str) -> None:
        """Say once what Codex repeats, such as that it tries to reach its model again."""
        if words != self._error:
            self._error = self.last_words = words[:MAX_TITLE_CHARACTERS]
            self._notice(f"the agent says: {words}")

    def _apply_item(self, item: Mapping[str, Any], *, has_ended: bool) -> None:
        match item["type"]:
            case "agent_message" if has_ended:
                text = str(item["text"])
                self._say(text)
                self._note_words(text)
            case "reasoning" if has_ended:
                self._think(str(item["text"]))
            case "error":
                self._notice(f"the agent says: {_words(item['message'])}")
            case "todo_list":
                self._apply_plan(item)
            case "command_execution" | "file_change" | "mcp_tool_call" | "web_search" | "collab_tool_call":
                self._apply_call(item, has_ended=has_ended)
            case _:
                return

    def _apply_call(self, item: Mapping[str, Any], *, has_ended: bool) -> None:
        call_id = str(item["id"])
        if call_id not in self._calls:
            title, kind, data = _described(item)
            self._begin_call(call_id, title, kind, **data)
        if has_ended:
            self._end_call(call_id, _result(item), has_failed=item.get("status") in {"failed", "declined"})

    def _apply_plan(self, item: Mapping[str, Any]) -> None:
        """Show a plan in one entry, which each update replaces."""
        call_id, steps = str(item["id"]), item["items"][:MAX_STEPS]
        if self._plan is None or self._plan["id"] != call_id:
            self._plan = {"id": call_id, "entry": self._next}
            self._next += 1
        lines = [f"[{'x' if step['completed'] else ' '}] {str(step['text'])[:MAX_STEP]}" for step in steps]
        entries = [
            {
                "content": str(step["text"])[:MAX_STEP],
                "status": "completed" if step["completed"] else "pending",
                "priority": "medium",
            }
            for step in steps
        ]
        entry = self._plan["entry"]
        text: dict[str, Any] = {"entry": entry, "source": LogSource.OUTPUT, "kind": LogKind.PLAN}
        self._show({**text, "text": "\n".join(lines), "data": {"entries": entries}})

    def _apply_usage(self, usage: Mapping[str, Any]) -> None:
        """Count by how much the tokens of the session have risen; a new session begins at zero."""
        if self._told_session != self.session:
            self._told_session, self._told = self.session, {}
        for name, number in _counters(usage).items():
            before = self._told.get(name, 0)
            risen = number - before if number >= before else number
            self._used[name] = min(self._used.get(name, 0) + risen, MAX_TOKENS)
            self._told[name] = number
        self._usage[""] = {**self._used}


def _counters(usage: Mapping[str, Any]) -> dict[str, int]:
    """Return the counters of a report: in Codex's the input has the tokens of caches, the output those of thoughts."""
    told = {name: number for name, number in usage.items() if is_count(number)}
    read, written = told.get("cached_input_tokens", 0), told.get("cache_write_input_tokens", 0)
    counters = {"cache_read_tokens": read, "cache_write_tokens": written}
    if "input_tokens" in told:
        counters["input_tokens"] = max(told["input_tokens"] - read - written, 0)
    if "output_tokens" in told:
        counters["output_tokens"] = told["output_tokens"]
    return counters


def _described(item: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Return the title of a tool call, its kind in the words of the Agent Client Protocol, and further data."""
    match item["type"]:
        case "command_execution":
            return " ".join(_command(str(item["command"])).split()), "execute", {}
        case "file_change":
            return _changes(item["changes"])
        case "mcp_tool_call":
            return f"{item['server']}: {item['tool']}", "other", {}
        case "web_search":
            return f"Search: {item.get('query') or ''}", "fetch", {}
        case _:
            return " ".join(f"{item['tool']} {item.get('prompt') or ''}".split()), "other", {}


def _command(command: str) -> str:
    """Return the beginning of a command without the shell that Codex runs it with."""
    begun = command.strip()[:MAX_COMMAND]
    ends = ("",) if begun == command.strip() else ("", "'", '"')  # the quotation that it is cut in
    for end in ends:
        with suppress(ValueError):  # a quotation that does not end
            words = shlex.split(begun.rstrip("\\") + end)
            return words[-1] if len(words) == _SHELL_ARGUMENTS and words[1] in {"-c", "-lc"} else begun
    return begun


def _changes(changes: Sequence[Mapping[str, Any]]) -> tuple[str, str, dict[str, Any]]:
    verbs = {_VERBS.get(each["kind"], "Edit") for each in changes}
    verb = verbs.pop() if len(verbs) == 1 else "Edit"
    paths = [str(each["path"])[:MAX_TITLE_CHARACTERS] for each in changes[:MAX_PLACES]]
    kind = "delete" if verb == "Delete" else "edit"
    return f"{verb}: {', '.join(paths)}", kind, {"locations": [{"path": path} for path in paths]}


def _result(item: Mapping[str, Any]) -> str:
    """Return what came of a tool call, as text."""
    if item["type"] == "command_execution":
        return str(item.get("aggregated_output") or "").rstrip("\n")
    error, result = item.get("error"), item.get("result")
    if isinstance(error, dict):
        return str(error.get("message"))
    content = result.get("content") if isinstance(result, dict) else None
    texts = [str(each.get("text", "")) for each in content or () if isinstance(each, dict)]
    return "\n".join(texts)


def _words(message: object) -> str:
    """Return an error in words: a provider's is often JSON, with its message in it."""
    text = str(message)
    try:
        error = orjson.loads(text)["error"]["message"]
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return text
    return str(error)
