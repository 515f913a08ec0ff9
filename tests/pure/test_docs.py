"""The papers say what is there: generated ones are fresh, and what they name exists."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskherd.observability import metrics
from taskherd.settings import __main__ as settings
from taskherd.settings import unknown_variables

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def found(pattern: str, page: Path) -> Iterator[str]:
    """The first group of every match in a page."""
    return (match[1] for match in re.finditer(pattern, page.read_text(encoding="utf-8")))


def targets() -> set[str]:
    """The targets of the Makefile."""
    return set(found(r"(?m)^([a-z][a-z-]*):", ROOT / "Makefile"))


@pytest.mark.parametrize(("name", "table"), [("settings.md", settings.table), ("metrics.md", metrics.table)])
def test_generated_tables_are_fresh(name: str, table: Callable[[], str]) -> None:
    """``docs/settings.md`` and ``docs/metrics.md`` are what the code says now; ``make docs`` writes them anew."""
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == table() + "\n"


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page leads to a file or folder of this repository."""
    links = [link.partition("#")[0] for link in found(r"\]\(([^)\s]+)\)", page) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []


@every_page
def test_make_targets_exist(page: Path) -> None:
    """Every ``make`` command that a page tells people to run has its target."""
    assert set(found(r"(?m)(?:^|`)make ([a-z][a-z-]*)", page)) <= targets()


@every_page
def test_variables_are_settings(page: Path) -> None:
    """Every ``TASKHERD_`` variable that a page names is a setting."""
    named = dict.fromkeys(found(r"(TASKHERD_[A-Z][A-Z_]*[A-Z])", page), "set")
    assert unknown_variables(named) == ()


@every_page
def test_metrics_are_declared(page: Path) -> None:
    """Every metric that a page names is declared."""
    declared = {each.name for each in metrics.Metrics().declared}
    assert set(found(r"`(taskherd_[a-z_]+)`", page)) <= declared


@every_page
def test_files_exist(page: Path) -> None:
    """Every file of ours that a page names in code marks is where it says, seen from the root or from the package."""
    named = set(found(r"`((?:[a-z_.]+/)+[a-z_.-]*\.(?:py|md|yaml|toml))`", page))
    homes = (ROOT, ROOT / "src" / "taskherd")
    assert [name for name in sorted(named) if not any((home / name).exists() for home in homes)] == []


def test_decisions_are_listed() -> None:
    """Every decision is listed in the architecture, under the title that it bears."""
    listed = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs" / "adr").glob("*.md")):
        title = page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        assert f"[{title}](adr/{page.name})" in listed


def test_the_directory_of_the_example_is_the_one_that_is_shipped() -> None:
    """The ids in the README's example are those of the directory that ``make dev`` loads."""
    directory = (ROOT / "deploy" / "example-directory.yaml").read_text(encoding="utf-8")
    ids = list(found(r'(?m)^[A-Z]+ = "([0-9a-f-]{36})"', ROOT / "README.md"))
    assert ids
    assert all(f"id: {each}" in directory for each in ids)
