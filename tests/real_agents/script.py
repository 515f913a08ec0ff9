"""The script that the model server plays, whichever API it is asked through: what the user wrote decides.

- ``run: COMMAND`` is answered with a sentence and a call of the agent's shell; what that printed, with
  ``The command printed: …``. ``edit: PATH OLD -> NEW`` in the line before it has the agent's own tool for edits first.
- ``recall`` is answered with the first thing that the user wrote in the conversation which the request contains.
- ``write: PATH TEXT`` is answered with the file, as Aider wants it.
- ``refuse: WORDS`` fails with status 400, ``fail: WORDS`` with 500, each time; ``limit: WORDS`` once, with 429.
- Anything else is answered with ``You said: …``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple

BEFORE_TOOL: Final = "I run the command."
RETRY_AFTER: Final = {"retry-after": "1"}
"""The header with which a failure says that the request may be repeated in a second."""
SHELLS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "Bash": ("command", {"description": "Run the command of the script"}),
    "bash": ("command", {"description": "Run the command of the script"}),
    "exec_command": ("cmd", {"sandbox_permissions": "require_escalated", "justification": "May I run the command?"}),
    "run_shell_command": ("command", {}),
    "terminal": ("command", {"security_risk": "LOW", "summary": "Run the command of the script"}),
}
"""The tools of Claude Code, OpenCode, Codex, Gemini CLI and OpenHands that run a command, each with the name of the
command's argument and its further ones. Codex asks for permission only outside of its sandbox."""
_EDIT = re.compile(r"edit: (?P<path>\S+) (?P<old>.+) -> (?P<new>.+)\n")
_RUN = re.compile(r"run: (?P<command>.+)", re.DOTALL)
_WRITE = re.compile(r"write: (?P<path>\S+) (?P<text>.+)")
_FAILURE = re.compile(r"(?P<word>refuse|fail|limit): (?P<words>.+)")
_STATUSES: Final = {"refuse": 400, "fail": 500, "limit": 429}


class Conversation(NamedTuple):
    """What a request contains."""

    first: str
    """The first thing that the user wrote."""
    said: str
    """The last one."""
    results: list[str]
    """What the tools returned since then."""


class Call(NamedTuple):
    """The call of an agent's tool."""

    name: str
    arguments: dict[str, Any]


class Failure(NamedTuple):
    """An error with which a request is answered."""

    status: int
    words: str

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response."""
        return {} if self.status == _STATUSES["refuse"] else RETRY_AFTER


def shell(tools: set[str]) -> str | None:
    """Return the name of the tool that runs a command, None if none is offered."""
    return next((name for name in SHELLS if name in tools), None)


def calls(said: str, tools: set[str], *, asks: bool = True) -> list[Call]:
    """Return the calls that the prompt wants, in order; ``asks``: whether the agent may ask for permission."""
    name, match = shell(tools), _RUN.search(said)
    if name is None or match is None:
        return []

    def run(line: str) -> Call:
        argument, further = SHELLS[name]
        return Call(name, {argument: line, **(further if asks else {})})

    command = run(match["command"].strip())
    if edit := _EDIT.search(said):
        return [*_edit(edit["path"], edit["old"], edit["new"], tools, run), command]
    return [command]


def _edit(path: str, old: str, new: str, tools: set[str], run: Callable[[str], Call]) -> list[Call]:
    """Return the calls with which an agent edits a file.

    Claude Code and OpenCode want to have read it. Codex applies a patch itself that a command hands to ``apply_patch``.
    """
    if "Edit" in tools:
        edited = {"file_path": path, "old_string": old, "new_string": new}
        return [Call("Read", {"file_path": path}), Call("Edit", edited)]
    if "edit" in tools:
        edited = {"filePath": path, "oldString": old, "newString": new}
        return [Call("read", {"filePath": path}), Call("edit", edited)]
    if "replace" in tools:
        edited = {"file_path": path, "old_string": old, "new_string": new, "instruction": "Edit the file."}
        return [Call("replace", edited)]
    return [
        run(f"apply_patch <<'EOF'\n*** Begin Patch\n*** Update File: {path}\n@@\n-{old}\n+{new}\n*** End Patch\nEOF")
    ]


def answer(conversation: Conversation, tools: set[str], *, asks: bool = True) -> tuple[str, Call | None]:
    """Return the text that answers, and the call of a tool if one is next."""
    said, results = conversation.said, conversation.results
    wanted = calls(said, tools, asks=asks)
    if len(results) < len(wanted):
        return BEFORE_TOOL, wanted[len(results)]
    if results:
        return f"The command printed: {results[-1].strip()}", None
    if match := _WRITE.search(said):
        return f"I write the file.\n\n{match['path']}\n```\n{match['text']}\n```", None
    if said == "recall":
        return f"You began with: {conversation.first}", None
    return f"You said: {said}", None


_limited: Counter[str] = Counter()


def failure(said: str, tools: set[str]) -> Failure | None:
    """Return the error that answers a request of a turn, None if there is none; titles and the like never fail."""
    match = _FAILURE.match(said) if tools else None
    if match is None:
        return None
    if match["word"] == "limit":
        _limited[said] += 1
        if _limited[said] > 1:
            return None
    return Failure(_STATUSES[match["word"]], match["words"])
