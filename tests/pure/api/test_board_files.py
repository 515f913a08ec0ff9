"""The files of the board: what is served of them, how, and that the vendored ones are what they claim to be."""

from __future__ import annotations

import gzip
import re
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import pytest

from taskherd.api.board.files import IMMUTABLE, NOT_STORED, POLICY, BoardFiles, board_files, imports_of
from taskherd.api.board.routes import PAGES

STATIC = Path(str(files("taskherd.api.board"))) / "static"
MAX_HOME_BYTES = 100 * 1024
"""Maximum size of everything that the home page loads, compressed."""


def test_vendored_files_have_their_hashes() -> None:
    """Every vendored file is the one whose hash was recorded, and there are no others."""
    folder = STATIC / "vendor"
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    recorded = {name: digest for digest, name in (line.split("  ") for line in lines)}
    present = {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}
    assert present - set(recorded) == {"README.md", "SHA256SUMS"}
    assert {name: sha256((folder / name).read_bytes()).hexdigest() for name in recorded} == recorded


def test_the_home_page_is_small() -> None:
    """Everything that the home page loads is at most 100 KB when compressed."""
    board = board_files()
    modules = board.modules("app.js", PAGES["/"][1])
    shell = board.shell(*PAGES["/"], {"accept-encoding": "gzip"})
    named = re.findall(rf"/assets/{board.version}/([^\"]+)", gzip.decompress(shell.body).decode())
    names = {*modules, *named, "icon-needs.svg"}
    assert "task.css" in names, named
    sizes = {name: len(board.bodies[name].compressed or board.bodies[name].content) for name in names}
    total = sum(sizes.values()) + len(shell.body)
    print(f"home page: {total:,} bytes in {len(names) + 1} files")  # noqa: T201 - `pytest -rP` shows it
    assert total <= MAX_HOME_BYTES, sizes


def test_what_moves_for_ever_is_left_to_the_compositor() -> None:
    """Endless animations change opacity and transform only: others style and paint the whole page again and again."""
    sheets = "".join(path.read_text() for path in STATIC.glob("*.css"))
    endless = set(re.findall(r"animation: *(\w+)[^;}]*\binfinite\b", sheets))
    assert endless
    for name in endless:
        frames = re.search(rf"@keyframes {name} {{((?:[^{{}}]*{{[^}}]*}})*)", sheets)
        assert frames is not None, name
        assert set(re.findall(r"([\w-]+) *:", frames[1])) <= {"opacity", "transform"}, name


def test_all_imports_are_relative_and_exist() -> None:
    """Modules import only files of the board, by relative paths, so that they need no build and no other host."""
    board = board_files()
    for name, body in board.bodies.items():
        if name.endswith(".js"):
            source = body.content.decode()
            assert set(imports_of(name, source)) <= set(board.bodies), name
            assert "//cdn" not in source
    for _, module in PAGES.values():
        assert module in board.bodies


def test_pages_say_the_same_in_script_and_server() -> None:
    """The pages that the server serves are those that the script knows."""
    routes = (STATIC / "router.js").read_text()
    for path, (_, module) in PAGES.items():
        assert f'import("./{module}")' in routes, path


@pytest.mark.parametrize(
    ("header", "is_compressed"),
    [("gzip, br", True), ("br;q=1, gzip;q=0.5", True), ("*", True), ("br", False), ("", False), ("gzip;q=0", False)],
)
def test_files_are_compressed_for_clients_that_accept_it(header: str, *, is_compressed: bool) -> None:
    """A client that accepts gzip gets the same content, compressed."""
    board = BoardFiles({"app.js": b"one();\n" * 100})
    response = board.asset(board.version, "app.js", {"accept-encoding": header})
    assert response is not None
    assert (response.headers.get("Content-Encoding") == "gzip") is is_compressed
    assert (gzip.decompress(response.body) if is_compressed else response.body) == b"one();\n" * 100
    assert response.headers["Vary"] == "Accept-Encoding"


def test_files_of_this_version_are_kept_for_good_and_others_are_not() -> None:
    """The address of a file names the version of all files, so caches may keep it; under another they must not."""
    board, other = BoardFiles({"app.js": b"one()"}), BoardFiles({"app.js": b"two()"})
    assert board.version != other.version
    own = board.asset(board.version, "app.js", {})
    foreign = board.asset(other.version, "app.js", {})
    assert own is not None
    assert foreign is not None
    assert (own.headers["Cache-Control"], foreign.headers["Cache-Control"]) == (IMMUTABLE, NOT_STORED)
    assert own.body == foreign.body == b"one()"
    unchanged = board.asset(board.version, "app.js", {"if-none-match": own.headers["ETag"]})
    assert unchanged is not None
    assert (unchanged.status, unchanged.body) == (304, b"")
    assert unchanged.headers["Content-Security-Policy"] == POLICY


@pytest.mark.parametrize(
    "name", ["", "missing.js", "../routes.py", "vendor/README.md", "vendor/SHA256SUMS", "index.html"]
)
def test_nothing_else_is_served(name: str) -> None:
    """Only scripts, style sheets and pictures have an address."""
    board = board_files()
    assert board.asset(board.version, name, {}) is None


def test_the_document_loads_early_what_its_page_needs() -> None:
    """The document names the modules that a page imports, directly or not, so that they are loaded at once."""
    contents = {
        "index.html": b"<title>{{title}}</title>{{preload}}",
        "app.js": b'import { a } from "./a.js";\nimport "./b.js";',
        "a.js": b'/** @type {import("./types.js").A} */\nexport const load = () => import("./pages/other.js");',
        "b.js": b"",
        "pages/one.js": b'import{x}from"../c.js";import{y}from"../a.js";',
        "c.js": b"",
        "pages/other.js": b"",
    }
    board = BoardFiles(contents)
    assert board.modules("app.js", "pages/one.js") == ["app.js", "pages/one.js", "a.js", "b.js", "c.js"]
    document = board.shell("A <b>", "pages/one.js", {}).body.decode()
    assert document.startswith("<title>A &lt;b&gt;</title>")
    assert f'<link rel="modulepreload" href="/assets/{board.version}/c.js">' in document
    assert "other.js" not in document


def test_the_policy_allows_nothing_unsafe() -> None:
    """Neither inline scripts or styles, nor other hosts, nor HTML from strings."""
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY
    assert "require-trusted-types-for 'script'" in POLICY
