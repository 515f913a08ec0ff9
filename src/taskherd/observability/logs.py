"""Structured logs, as JSON or for a console, without secrets and control characters."""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING, Any, TextIO

import orjson
import structlog
from structlog.contextvars import merge_contextvars

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

    from structlog.typing import EventDict, Processor, WrappedLogger

HIDDEN = "********"
MAX_TEXT = 8_000
"""Maximum length of a logged text, in characters; longer ones are truncated, with ``…`` at the end."""
_MAX_DEPTH = 6
MIN_SECRET = 4
"""Minimum length of a secret that is hidden everywhere, in characters: shorter ones occur in ordinary words.

In URLs, passwords of any length are hidden.
"""
_SECRET_NAME = re.compile(r"passw|secret|token|authorization|cookie|credential|api_?key|private_?key", re.IGNORECASE)
_PASSWORD_IN_URL = re.compile(
    r"(?P<before>\b[a-z][a-z0-9+.-]{0,19}://[^\s:/@]{0,128}:)[^\s/]{0,512}(?P<after>@)", re.IGNORECASE
)
_NOISY = ("aio_pika", "aiormq", "alembic", "asyncio", "sqlalchemy", "uvicorn")
_SILENCED = ("aiormq.connection",)
"""Logs every failed connection attempt with a stack trace and also raises it; taskherd logs it once, in one line."""


def configure(level: str, form: str, *, secrets: Iterable[str] = (), stream: TextIO | None = None) -> None:
    """Write the logs of structlog and of the standard library, and Python's warnings, in one format.

    Args:
        level: debug, info, warning or error.
        form: json, console, or auto (console if ``stream`` is a terminal).
        secrets: texts that are hidden everywhere.
        stream: where to write; stderr by default.
    """
    out = stream or sys.stderr
    clean = Cleaner(secrets)
    shared: list[Processor] = [
        merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        clean,
    ]
    console = form == "console" or (form == "auto" and out.isatty())
    _configure_logging(level, out, shared, _renderer(console, out))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _configure_logging(level: str, out: TextIO, shared: list[Processor], renderer: Processor) -> None:
    """Configure the standard library's logging, to which structlog passes its entries."""
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.PositionalArgumentsFormatter(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    for name in _SILENCED:
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else logging.CRITICAL)


class Cleaner:
    """A structlog processor that hides secrets, escapes control characters and truncates long texts."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        longest_first = sorted({each for each in secrets if len(each) >= MIN_SECRET}, key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """Clean every value of ``event`` in place."""
        for key, value in event.items():
            if not key.startswith("_"):
                event[key] = self._value(key, value, 0)
        return event

    def text(self, text: str, *, lines: bool = False) -> str:
        """Return ``text`` without secrets and control characters, on one line unless ``lines`` is set."""
        text = text[
            : 2 * MAX_TEXT
        ]  # limits the time; truncated again below, which removes a secret that is cut in two here
        if self._secrets:
            text = self._secrets.sub(HIDDEN, text)
        text = _PASSWORD_IN_URL.sub(rf"\g<before>{HIDDEN}\g<after>", text)
        if len(text) > MAX_TEXT:
            text = text[: MAX_TEXT - 1] + "…"
        if text.isprintable():
            return text
        return "".join(char if char.isprintable() or (lines and char == "\n") else _escape(char) for char in text)

    def _value(self, key: str, value: Any, depth: int) -> Any:
        if _SECRET_NAME.search(key) and isinstance(value, (str, bytes, list, tuple, dict)):
            return HIDDEN
        if isinstance(value, str):
            return self.text(value, lines=key == "exception")
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if depth < _MAX_DEPTH and isinstance(value, (list, tuple, set, frozenset)):
            return [self._value("", each, depth + 1) for each in value]
        if depth < _MAX_DEPTH and isinstance(value, dict):
            return {self.text(str(name)): self._value(str(name), each, depth + 1) for name, each in value.items()}
        return self.text(str(value))


def _escape(char: str) -> str:
    return char.encode("unicode_escape", errors="replace").decode("ascii")


def _renderer(console: bool, out: TextIO) -> Processor:  # noqa: FBT001 - private, one caller
    if console:
        return structlog.dev.ConsoleRenderer(
            colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
        )

    def render(_logger: WrappedLogger, _method: str, event: MutableMapping[str, Any]) -> str:
        return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()

    return render
