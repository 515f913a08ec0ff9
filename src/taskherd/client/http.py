"""Send requests to the API with the standard library's HTTP client; every wait has a timeout."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse, IncompleteRead
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from taskherd.client.errors import ApiError, ClientError, ExitCode, Unreachable

URL: Final = "TASKHERD_URL"
TOKEN: Final = "TASKHERD_TOKEN"  # noqa: S105 - a variable's name
REQUEST_TIMEOUT: Final = 30.0
"""Seconds without a byte from the server after which a request fails."""
LSN: Final = "X-Taskherd-LSN"
"""The header of the response to a write with which later requests read nothing older, whichever process they reach."""
MAX_BODY: Final = 64 * 1024 * 1024
"""Maximum size of a response body that is read, in bytes."""


class _NoRedirect(HTTPRedirectHandler):
    """A handler that follows no redirect: the token must reach no other server."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """A response: HTTP status, headers by lowercase name, and the decoded JSON body (None if it is empty)."""

    status: int
    headers: Mapping[str, str]
    body: Any


class Client:
    """A client of one server, with one token.

    ``url`` is the server's base URL (``http://127.0.0.1:7080``), without ``/api/v2``. Every method raises ``ApiError``
    if the server answers with an error, and ``Unreachable`` if no usable answer arrives in time.
    """

    def __init__(self, url: str, token: str) -> None:
        self._base = url.rstrip("/") + "/api/v2"
        self._token = token
        self._opener = build_opener(_NoRedirect())
        self._lsn: str | None = None

    def page(self, *path: str) -> str:
        """Return the address of a page of the board, such as that of a task: the segments of its path, unquoted."""
        return "/".join((self._base.removesuffix("/api/v2"), *(quote(each, safe="") for each in path)))

    def request(
        self,
        method: str,
        *path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = REQUEST_TIMEOUT,
    ) -> ApiResponse:
        """Send a request and return the complete response.

        Args:
            method: the HTTP method.
            path: the path's segments below ``/api/v2``, unquoted.
            query: the query parameters.
            body: a value to send as JSON; None sends no body.
            headers: additional request headers.
            timeout: seconds without a byte from the server after which the request fails.
        """
        with self.stream(method, *path, query=query, body=body, headers=headers, timeout=timeout) as response:
            raw = _read_body(response)
            return ApiResponse(response.status, _headers_of(response), _decode_json(raw) if raw else None)

    @contextmanager
    def stream(
        self,
        method: str,
        *path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = REQUEST_TIMEOUT,
    ) -> Iterator[HTTPResponse]:
        """Send a request as ``request`` does, and yield the open response, whose body is still to be read."""
        url = "/".join([self._base, *(quote(part, safe="") for part in path)])
        if query:
            url += "?" + urlencode(query)
        content = None if body is None else json.dumps(body).encode()
        sent_headers = {
            "Coder-Session-Token": self._token,
            "Accept": "application/json, text/event-stream",
            **(headers or {}),
        }
        if content is not None:
            sent_headers["Content-Type"] = "application/json"
        if self._lsn is not None:
            sent_headers[LSN] = self._lsn
        request = Request(url, data=content, headers=sent_headers, method=method)  # noqa: S310 - `from_environment` allows http and https only
        try:
            with self._opener.open(request, timeout=timeout) as response:
                self._lsn = response.headers.get(LSN, self._lsn)
                yield response
        except HTTPError as error:
            with error:
                body = _read_error(error)
                raise ApiError.from_response(error.code, body, error.headers.get("Retry-After")) from None
        except URLError as error:  # there was no connection, or it was lost before all of the request was sent
            raise Unreachable(f"cannot reach {self._base}: {error.reason}", may_have_arrived=False) from None
        except IncompleteRead:
            raise Unreachable("the response broke off") from None
        except (OSError, HTTPException) as error:
            raise Unreachable(f"cannot reach {self._base}: {str(error) or type(error).__name__}") from None


def from_environment(environ: Mapping[str, str] = os.environ) -> Client:
    """Return a client for ``TASKHERD_URL`` and ``TASKHERD_TOKEN``.

    Raise ``ClientError`` if one of them is missing or invalid.
    """
    for name, value in (
        (URL, "the server's URL, such as http://127.0.0.1:7080"),
        (TOKEN, "the output of `taskherd token create --user NAME`"),
    ):
        if not environ.get(name):
            advice = f"set it to {value}; if `taskherd dev` is running, run: . .taskherd/env"
            raise ClientError(ExitCode.USAGE, f"{name} is not set", advice)
    url, token = parse_url(URL, environ[URL]), environ[TOKEN].strip()
    if not (token.isascii() and token.isprintable()):
        raise ClientError(ExitCode.USAGE, f"{TOKEN} contains characters that no token has", "copy the token again")
    return Client(url, token)


def parse_url(name: str, url: str) -> str:
    """Return the base URL of a server without spaces around it.

    Raise ``ClientError`` if it is malformed, or has a user, a password, a query or a fragment, which no request would
    contain. The error names the variable, and quotes the URL only if no secret can be in it.
    """
    url = url.strip()
    if _is_server_url(url):
        return url
    quoted = "" if {"@", "?", "#"}.intersection(url) else f" {url!a}"
    advice = "expected a URL such as http://127.0.0.1:7080, without a user or a password"
    raise ClientError(ExitCode.USAGE, f"{name}: invalid server URL{quoted}", advice)


def _is_server_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna"), parts.port
    except ValueError:
        return False
    is_bare = "@" not in parts.netloc and not {"?", "#"}.intersection(url)
    is_sendable = url.isprintable() and " " not in url and parts.path.isascii() and port != 0
    return parts.scheme in {"http", "https"} and host != b"" and is_bare and is_sendable


def _headers_of(response: HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def _read_body(response: HTTPResponse | HTTPError) -> bytes:
    """Return the body. Raise ``IncompleteRead`` if it breaks off, which ``read`` does for chunked bodies only."""
    raw = response.read(MAX_BODY)
    left: int | None = getattr(response, "length", None)  # an HTTPError has the attributes of its response
    if left and len(raw) < MAX_BODY:
        raise IncompleteRead(raw, left)
    return raw


def _decode_json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        message = "the response is not JSON, so it is not from the taskherd API"
        raise Unreachable(message, f"check {URL}", may_have_arrived=False) from None


def _read_error(error: HTTPError) -> Any:
    """Return the JSON of an error; None if it breaks off, or a proxy says with a page that it has no answer."""
    try:
        return _decode_json(_read_body(error))
    except (OSError, HTTPException):
        return None
    except Unreachable:
        if error.code < HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        return None
