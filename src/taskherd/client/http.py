"""Requests to the API and what comes back, over the standard library's HTTP client; every wait is bounded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from taskherd.client.errors import ApiError, ClientError, ExitCode, Unreachable

URL: Final = "TASKHERD_URL"
TOKEN: Final = "TASKHERD_TOKEN"  # noqa: S105 - a variable's name
TIMEOUT: Final = 30.0
"""Seconds that a request may take, beyond what it asks the server to wait."""
MAX_BODY: Final = 64 * 1024 * 1024


class _NoRedirect(HTTPRedirectHandler):
    """Follows no redirect: the token is for the server that was named."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """An answer: its status, headers by lowercase name, and its JSON, None where it had no body."""

    status: int
    headers: Mapping[str, str]
    body: Any


class Client:
    """Speaks to one server with one token; every method raises ClientError."""

    def __init__(self, url: str, token: str) -> None:
        self._base = url.rstrip("/") + "/api/v2"
        self._token = token
        self._opener = build_opener(_NoRedirect())

    def request(
        self,
        method: str,
        *path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT,
    ) -> ApiResponse:
        """Send a request and return the answer whole; `path` are its parts, each quoted here."""
        with self.stream(method, *path, query=query, body=body, headers=headers, timeout=timeout) as response:
            raw = response.read(MAX_BODY)
            return ApiResponse(response.status, _headers(response), _parsed(raw) if raw else None)

    @contextmanager
    def stream(
        self,
        method: str,
        *path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT,
    ) -> Iterator[HTTPResponse]:
        """Send a request and hold its answer open; `timeout` bounds every wait for something of it."""
        url = "/".join([self._base, *(quote(part, safe="") for part in path)])
        if query:
            url += "?" + urlencode(query)
        content = None if body is None else json.dumps(body).encode()
        told = {"Coder-Session-Token": self._token, "Accept": "application/json, text/event-stream", **(headers or {})}
        if content is not None:
            told["Content-Type"] = "application/json"
        request = Request(url, data=content, headers=told, method=method)  # noqa: S310 - `from_environment` allows http and https only
        try:
            with self._opener.open(request, timeout=timeout) as response:
                yield response
        except HTTPError as error:
            with error:
                raise ApiError.from_response(
                    error.code, _parsed(error.read(MAX_BODY)), error.headers.get("Retry-After")
                ) from None
        except URLError as error:
            raise Unreachable(f"{self._base}: {error.reason}") from None
        except (OSError, HTTPException) as error:
            raise Unreachable(f"{self._base}: {str(error) or type(error).__name__}") from None


def from_environment(environ: Mapping[str, str] = os.environ) -> Client:
    """A client as TASKHERD_URL and TASKHERD_TOKEN say; raises ClientError where they are not set, or wrong."""
    for name, example in ((URL, "http://127.0.0.1:7080"), (TOKEN, "what `taskherd token create --user NAME` prints")):
        if not environ.get(name):
            advice = f"set it to {example}; beside `make dev`, run: . .taskherd/env"
            raise ClientError(ExitCode.USAGE, f"{name} is not set", advice)
    url, token = environ[URL], environ[TOKEN].strip()
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ClientError(
            ExitCode.USAGE, f"{URL}: {url!r} is no URL of a server", "expected one such as http://127.0.0.1:7080"
        )
    if not (token.isascii() and token.isprintable()):
        raise ClientError(ExitCode.USAGE, f"{TOKEN} holds characters that no token has", "set it again")
    return Client(url, token)


def _headers(response: HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        raise Unreachable(
            "the answer is not JSON; something else than the API answers there", f"look at {URL}"
        ) from None
