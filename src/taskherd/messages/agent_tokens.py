"""Agent tokens: a task id and build number with a signature, computed when needed and never stored."""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Iterable

_TOKEN = re.compile(r"([0-9a-f]{32})\.([1-9][0-9]{0,9})\.([A-Za-z0-9_-]{43})", re.ASCII)


def agent_token(key: str, task_id: UUID, build_number: int) -> str:
    """Return the agent's token, the same at every call.

    Its form is ``<task id, 32 hex digits>.<build number>.<HMAC-SHA256, 43 characters of base64url>``.
    """
    claims = f"{task_id.hex}.{build_number}"
    mac = hmac.digest(key.encode(), b"taskherd agent " + claims.encode(), hashlib.sha256)
    return f"{claims}.{urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def verify_agent_token(keys: Iterable[str], token: str) -> tuple[UUID, int] | None:
    """Verify an agent token and return its task id and build number, or None if no key matches."""
    parts = _TOKEN.fullmatch(token)
    if parts is None:
        return None
    task_id, build_number = UUID(hex=parts[1]), int(parts[2])
    matches = [hmac.compare_digest(token, agent_token(key, task_id, build_number)) for key in keys]
    return (task_id, build_number) if any(matches) else None
