"""What Claude Code's events say, of ``claude -p --output-format stream-json --verbose``.

An event is a JSON object on a line: ``system`` (its ``init`` begins a turn and names the session), ``assistant`` and
``user`` (a message of the model; results of tools), and ``result`` (the end of a turn). Others are ignored.
https://code.claude.com/docs/en/headless
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from taskherd.domain.reports import AgentState
from taskherd.domain.usage import MAX_MODELS
from taskherd.messages.limits import MAX_MODEL_CHARACTERS, MAX_TOKENS
from taskherd.messages.texts import sanitize_name
from taskherd.runner.agents.event_stream.stream import MAX_ID, AgentEventStream
from taskherd.runner.agents.usage_numbers import as_cost, is_count

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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
MAX_BLOCKS: Final = 1_000
"""Maximum number of blocks of a message that are looked at; each may be an entry of the log."""
_CONTEXT: Final = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
"""The tokens that are in the context after a message of the model."""


class ClaudeStream(AgentEventStream):
    """The conversation, state and usage of one build's Claude Code."""

    guessed_from: ClassVar[str] = "Claude Code's stream of events"

    def __init__(self, checkpoint: Mapping[str, Any], _earlier: Mapping[str, Any]) -> None:
        """Go on from this build's checkpoint. What it tells is its process's, so an earlier build does not matter."""
        super().__init__(checkpoint)
        self._context: dict[str, int] = {**checkpoint.get("context", {})}

    def checkpoint(self) -> dict[str, Any]:
        """Return what the next runner needs."""
        return {**super().checkpoint(), "context": self._context}

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
                        call_id, text = str(block["tool_use_id"]), _text_of(block.get("content"))
                        self._end_call(call_id, text, has_failed=bool(block.get("is_error")))
            case "result":
                self._apply_result(event)
            case _:
                return

    def _begin(self, event: Mapping[str, Any]) -> None:
        self._set_session(event.get("session_id"))
        self.in_turn, self.state = True, AgentState.WORKING

    def _apply_message(self, event: Mapping[str, Any]) -> None:
        said: list[str] = []
        for block in _blocks(event):
            match block.get("type"):
                case "text":
                    said.append(str(block["text"]))
                    self._say(said[-1])
                case "thinking":
                    self._think(str(block["thinking"]))
                case "tool_use":
                    self._apply_call(block)
                case _:
                    continue
        self._note_words("\n".join(said))
        usage = event["message"].get("usage")
        if isinstance(usage, dict) and event.get("parent_tool_use_id") is None:  # that of a subagent is another context
            used = sum(usage[name] for name in _CONTEXT if is_count(usage.get(name)))
            self._context["context_used"] = min(used, MAX_TOKENS)

    def _apply_call(self, block: Mapping[str, Any]) -> None:
        name, given = str(block["name"])[:MAX_ID], block.get("input")
        subjects = [given[each] for each in _SUBJECTS if given.get(each)] if isinstance(given, dict) else []
        title = f"{name}: {' '.join(str(subjects[0]).split())}" if subjects else name
        self._begin_call(str(block["id"]), title, _KINDS.get(name, "other"))

    def _apply_result(self, event: Mapping[str, Any]) -> None:
        words = event.get("result")
        if isinstance(words, str):
            self._note_words(words)
        has_failed = bool(event.get("is_error")) or event.get("subtype") != "success"
        reason = words if isinstance(words, str) and words else str(event.get("subtype"))
        self._end_turn(reason if has_failed else None)
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
    return [block for block in content[:MAX_BLOCKS] if isinstance(block, dict)]


def _text_of(content: object) -> str:
    """Return the result of a tool as text."""
    if isinstance(content, list):
        return "\n".join(str(each.get("text", "")) for each in content if isinstance(each, dict))
    return "" if content is None else str(content)
