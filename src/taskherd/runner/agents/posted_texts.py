"""The texts that were given to an agent behind AgentAPI, by which messages of its user are recognized.

An agent is not trusted: it can post a message to its own AgentAPI, or serve the events itself. A message of the role
``user`` is therefore a person's only if the runner has posted its text, one message for each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from taskherd.domain.reports import LogSource

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_POSTED = 100
"""Maximum number of texts that are remembered, the latest."""
_UNSEEN = -1


@dataclass(slots=True)
class _PostedText:
    digest: str
    after: int
    """The highest message id before the text was posted."""
    message_id: int = _UNSEEN
    """The message with the text."""


class PostedTexts:
    """The latest texts that were given to one agent, each with the message that shows it."""

    def __init__(self, texts: Sequence[Sequence[Any]] = (), closed: int = _UNSEEN) -> None:
        """Continue with what ``save`` returned."""
        self._texts = [_PostedText(*text) for text in texts]
        self._closed = closed
        """The highest id of a message whose text is not remembered any more; no message up to it changes the log."""

    def save(self) -> dict[str, Any]:
        """Return the arguments for the next ``PostedTexts``, as JSON has them."""
        return {"texts": [[each.digest, each.after, each.message_id] for each in self._texts], "closed": self._closed}

    def add(self, text: str, after: int = _UNSEEN) -> None:
        """Remember a text that is about to be posted; its message has an id greater than ``after``."""
        self._texts.append(_PostedText(_digest(text), after))
        if len(self._texts) > MAX_POSTED:
            self._closed = max(self._closed, self._texts.pop(0).message_id)

    def discard_last(self) -> None:
        """Forget the text that was added last: the agent did not get it."""
        self._texts.pop()

    def is_shown(self, text: str) -> bool:
        """Return whether a message shows this text."""
        return any(each.message_id != _UNSEEN for each in self._texts if each.digest == _digest(text))

    def settle(self, text: str) -> bool:
        """Return whether a message shows this text; forget it otherwise, because it is to be posted again."""
        is_shown = self.is_shown(text)
        if not is_shown:
            self._texts = [each for each in self._texts if each.digest != _digest(text)]
        return is_shown

    def source(self, message_id: int, role: str, text: str) -> LogSource | None:
        """Return whose words a message is, or None if it would replace a person's message and is to be left out."""
        if message_id <= self._closed:
            return None
        said_by_user, digest = role == "user", _digest(text)
        for posted in self._texts:
            if posted.message_id == message_id:
                return LogSource.INPUT if said_by_user and posted.digest == digest else None
        for posted in self._texts:
            is_unseen = posted.message_id == _UNSEEN and posted.after < message_id
            if said_by_user and is_unseen and posted.digest == digest:
                posted.message_id = message_id
                return LogSource.INPUT
        return LogSource.OUTPUT


def is_echo(posted: str, message: str) -> bool:
    """Return whether a message is the posted one; terminals trim it and break its lines."""
    return _compact(posted) == _compact(message)


def _compact(text: str) -> str:
    return "".join(text.split())


def _digest(text: str) -> str:
    return blake2b(_compact(text).encode(errors="replace"), digest_size=12).hexdigest()
