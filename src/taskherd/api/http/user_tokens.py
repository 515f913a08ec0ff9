"""Tokens of users: ``id-secret``. The token is never stored, only its id and the SHA-256 of the secret.

A plain hash is enough, because the secret has more than 128 random bits and cannot be guessed.
"""

from __future__ import annotations

import re
import secrets
import string
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

ID_LENGTH: Final = 10
SECRET_LENGTH: Final = 32
"""Characters, each of 62: 190 bits."""
_LETTERS: Final = string.ascii_letters + string.digits
_TOKEN: Final = re.compile(r"([0-9A-Za-z]{10})-([0-9A-Za-z]{22,64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ParsedToken:
    """The id of a token and the hash of its secret."""

    id: str
    secret_hash: bytes = field(repr=False)


def generate() -> tuple[str, ParsedToken]:
    """Return a new token twice: as the string to show once, and in the form to store."""
    token_id = "".join(secrets.choice(_LETTERS) for _ in range(ID_LENGTH))
    secret = "".join(secrets.choice(_LETTERS) for _ in range(SECRET_LENGTH))
    return f"{token_id}-{secret}", ParsedToken(token_id, sha256(secret.encode()).digest())


def parse(text: str) -> ParsedToken | None:
    """Parse a token. Return None if the text does not have the form of one."""
    match = _TOKEN.fullmatch(text)
    return None if match is None else ParsedToken(match[1], sha256(match[2].encode()).digest())
