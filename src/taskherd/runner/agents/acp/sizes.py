"""Tell messages with very many parts apart before they are validated, which would hold the runner for seconds; pure."""

from __future__ import annotations

from typing import Any, Final

MAX_PARTS: Final = 10_000
"""Maximum number of elements and fields in a message, as far as the protocol's schema looks at them."""
_FREE: Final = frozenset({"rawInput", "rawOutput"})
"""Fields with any JSON, which the schema takes as it is; of ``_meta`` it looks at the names."""


def has_few_parts(message: dict[str, Any]) -> bool:
    """Return whether the parameters or the result of a message have at most ``MAX_PARTS``; it looks at no more."""
    left = MAX_PARTS
    waiting: list[dict[str, Any] | list[Any]] = [message]
    while waiting:
        container = waiting.pop()
        left -= len(container)
        if left < 0:
            return False
        if isinstance(container, list):
            waiting += [each for each in container if isinstance(each, dict | list)]
            continue
        for name, each in container.items():
            if name == "_meta" and isinstance(each, dict):
                left -= len(each)
            elif name not in _FREE and isinstance(each, dict | list):
                waiting.append(each)
    return left >= 0
