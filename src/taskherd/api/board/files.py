"""The files of the board, as they are served: with a version in their address, an ETag, and compressed."""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from html import escape
from importlib.resources import files
from importlib.resources.abc import Traversable
from posixpath import dirname, join, normpath
from typing import TYPE_CHECKING, Final

from taskherd.api.http import etags
from taskherd.api.http.compression import accepts_gzip
from taskherd.api.http.responses import BufferedResponse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONTENT_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
"""Content types of the files that are served, by the end of their names; others in the folder are not served."""
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types lit-html"
)
"""No inline script or style, nothing from other hosts, and no HTML from strings but the templates of lit-html."""
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Vary": "Accept-Encoding",
}
IMMUTABLE: Final = "public, max-age=31536000, immutable"
REVALIDATE: Final = "no-cache"
NOT_STORED: Final = "no-store"
MIN_COMPRESSED: Final = 256
"""Size in bytes from which on a body is compressed."""
_IMPORT: Final = re.compile(r"""\bimport\b(?:[^;"'()]*?\bfrom)?\s*["'](\.[^"']+)["']""")


@dataclass(frozen=True, slots=True)
class Body:
    """The content of a response, plain and compressed; without ``compressed`` that would not be smaller."""

    content: bytes = field(repr=False)
    content_type: str
    compressed: bytes | None = field(repr=False)
    etag: str

    def respond(self, headers: Mapping[str, str], cache_control: str) -> BufferedResponse:
        """Return the response to a request with these headers; a 304 if the client has this content already."""
        unchanged = etags.unchanged(headers, self.etag)
        if unchanged is not None:
            return BufferedResponse(304, b"", {**unchanged.headers, **HEADERS, "Cache-Control": cache_control})
        sent = {**HEADERS, "ETag": self.etag, "Cache-Control": cache_control}
        if self.compressed is not None and accepts_gzip(headers.get("accept-encoding", "")):
            return BufferedResponse(200, self.compressed, {**sent, "Content-Encoding": "gzip"}, self.content_type)
        return BufferedResponse(200, self.content, sent, self.content_type)


def make_body(content: bytes, content_type: str) -> Body:
    """Compress a content once."""
    compressed = gzip.compress(content, 9, mtime=0) if len(content) >= MIN_COMPRESSED else None
    etag = f'"{sha256(content).hexdigest()[:24]}"'
    return Body(content, content_type, compressed, etag)


class BoardFiles:
    """All files of one release. Their version is a hash of all of them, so that modules of two never mix in a cache."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self._contents = contents
        names = sorted(contents)
        self.bodies: Final = {
            name: make_body(contents[name], content_type)
            for name in names
            if (content_type := CONTENT_TYPES.get(name.rpartition(".")[2])) is not None
        }
        digest = sha256()
        for name in names:
            digest.update(b"%b\0%d\0%b" % (name.encode(), len(contents[name]), contents[name]))
        self.version: Final = digest.hexdigest()[:16]
        self._shells: dict[tuple[str, str], Body] = {}

    def asset(self, version: str, name: str, headers: Mapping[str, str]) -> BufferedResponse | None:
        """Return the response for a file, or None if there is none of this name.

        A page of another release, as during an upgrade, gets this one's file, which no cache keeps under that address.
        """
        body = self.bodies.get(name)
        if body is None:
            return None
        return body.respond(headers, IMMUTABLE if version == self.version else NOT_STORED)

    def shell(self, title: str, page: str, headers: Mapping[str, str]) -> BufferedResponse:
        """Return the document in which a page runs. ``page`` is the module that its address needs."""
        key = (title, page)
        body = self._shells.get(key)
        if body is None:
            body = self._shells[key] = self._render_shell(title, page)
        return body.respond(headers, REVALIDATE)

    def missing(self, headers: Mapping[str, str]) -> BufferedResponse:
        """Return the document for an address that has no page, which its script then says. It is never a 304."""
        encoding = headers.get("accept-encoding", "")
        found = self.shell("Not found · taskherd", "router.js", {"accept-encoding": encoding})
        return replace(found, status=404, headers={**found.headers, "Cache-Control": NOT_STORED})

    def _render_shell(self, title: str, page: str) -> Body:
        assets = f"/assets/{self.version}"
        early = [name for name in self.modules("app.js", page) if name not in ("app.js", page)]
        preload = "\n".join(f'<link rel="modulepreload" href="{assets}/{name}">' for name in early)
        html = self._contents["index.html"].decode()
        for name, value in (("title", escape(title)), ("assets", assets), ("preload", preload), ("page", page)):
            html = html.replace(f"{{{{{name}}}}}", value)
        return make_body(html.encode(), "text/html; charset=utf-8")

    def modules(self, *names: str) -> list[str]:
        """Return these modules and those that they import, directly or not, in the order in which they are found."""
        found: dict[str, None] = {}
        waiting = list(names)
        while waiting:
            name = waiting.pop(0)
            if name in found:
                continue
            found[name] = None
            waiting += imports_of(name, self._contents[name].decode())
        return list(found)


def imports_of(name: str, source: str) -> list[str]:
    """Return the modules that a module imports when it is loaded, by their names in the folder."""
    folder = dirname(name)
    return [normpath(join(folder, match[1])) for match in _IMPORT.finditer(source)]


@cache
def board_files() -> BoardFiles:
    """Return the files of this release, read once."""
    root = files("taskherd.api.board") / "static"
    return BoardFiles(dict(_read(root, "")))


def _read(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for each in folder.iterdir():
        if each.is_dir():
            yield from _read(each, f"{prefix}{each.name}/")
        elif not each.name.startswith("."):
            yield f"{prefix}{each.name}", each.read_bytes()
