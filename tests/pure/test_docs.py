"""The documents match the code: generated ones are up to date, and everything that they name exists."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml

from taskherd.api.board.routes import ROUTES as BOARD
from taskherd.cli.main import app
from taskherd.directory_file.example import EXAMPLE
from taskherd.directory_file.parse import parse
from taskherd.directory_file.run import RunConfig
from taskherd.domain.outcome import DeadLetterReason
from taskherd.observability import metrics
from taskherd.settings import __main__ as settings
from taskherd.settings import unknown_variables

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def matches(pattern: str, page: Path) -> Iterator[str]:
    """Yield the first group of every match in a page."""
    return (match[1] for match in re.finditer(pattern, page.read_text(encoding="utf-8")))


def targets() -> set[str]:
    """Return the targets of the Makefile."""
    return set(matches(r"(?m)^([a-z][a-z-]*):", ROOT / "Makefile"))


@pytest.mark.parametrize(("name", "table"), [("settings.md", settings.table), ("metrics.md", metrics.table)])
def test_generated_tables_are_up_to_date(name: str, table: Callable[[], str]) -> None:
    """``docs/settings.md`` and ``docs/metrics.md`` match the code; ``make docs`` regenerates them."""
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == table() + "\n"


@every_page
def test_linked_files_exist(page: Path) -> None:
    """Every relative link of a page names a file or folder of this repository."""
    links = [link.partition("#")[0] for link in matches(r"\]\(([^)\s]+)\)", page) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []


@every_page
def test_make_targets_exist(page: Path) -> None:
    """Every ``make`` command in a page is a target of the Makefile."""
    assert set(matches(r"(?m)(?:^|`)make ([a-z][a-z-]*)", page)) <= targets()


@every_page
def test_variables_are_settings(page: Path) -> None:
    """Every ``TASKHERD_`` variable that a page names is a setting, or an image of the compose file."""
    named = dict.fromkeys(matches(r"(TASKHERD_[A-Z][A-Z_]*[A-Z])", page), "set")
    images = set(matches(r"\$\{(TASKHERD_\w*IMAGE)\b", ROOT / "deploy" / "compose.yaml"))
    assert [each for each in unknown_variables(named) if each.variable not in images] == []


@every_page
def test_metrics_are_declared(page: Path) -> None:
    """Every metric that a page names is declared."""
    declared = {each.name for each in metrics.Metrics().declared}
    assert set(matches(r"`(taskherd_[a-z_]+)`", page)) <= declared


@every_page
def test_files_exist(page: Path) -> None:
    """Every path in backticks in a page exists, relative to the root or to the package."""
    named = set(matches(r"`((?:[a-z_.]+/)+[a-z_.-]*\.(?:py|md|yaml|toml))`", page))
    folders = (ROOT, ROOT / "src" / "taskherd")
    assert [name for name in sorted(named) if not any((folder / name).exists() for folder in folders)] == []


@every_page
def test_constants_and_attributes_exist(page: Path) -> None:
    """Every ``module.CONSTANT`` and ``Class.attribute`` in backticks in a page is defined in the package."""
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")}
    for span in set(matches(r"`([a-z_]+\.[A-Z][A-Z_]+|[A-Z][a-z]\w+\.[a-z]\w*)(?:\(\))?`", page)):
        owner, name = span.split(".")
        if owner in sys.stdlib_module_names:
            continue
        if owner.islower():
            candidates = [source for path, source in sources.items() if path.stem == owner]
            pattern = rf"(?m)^{name}\b"
        else:
            candidates = [source for source in sources.values() if re.search(rf"(?m)^class {owner}\b", source)]
            pattern = rf"\bdef {name}\(|(?m:^    {name}\b)|\bself\.{name}\b"
        assert any(re.search(pattern, source) for source in candidates), f"{span} does not exist"


@every_page
def test_private_names_exist(page: Path) -> None:
    """Every ``_private_name`` in backticks in a page occurs in the package."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    assert [name for name in matches(r"`(_[a-z]\w+)(?:\(\))?`", page) if not re.search(rf"\b{name}\b", source)] == []


@every_page
def test_templates_can_be_applied(page: Path) -> None:
    """Each YAML example of a template or its ``run`` is valid where the text says that it belongs."""
    example = EXAMPLE.read_text(encoding="utf-8")
    for block in re.findall(r"(?ms)^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8")):
        if block.startswith("run:"):
            directory = yaml.safe_load(example)
            directory["templates"][0]["versions"][0]["run"] = yaml.safe_load(block)["run"]
            assert parse(yaml.safe_dump(directory).encode()).templates
        elif block.startswith("  - id:"):
            assert len(parse((example + block).encode()).templates) == len(parse(example.encode()).templates) + 1
        else:
            assert block.startswith("runner:\n"), "an example of something else than directory files and chart values"


@every_page
def test_commands_and_their_options_exist(page: Path) -> None:
    """Every ``taskherd …`` command in backticks or in a shell example exists, with the options that it is given."""
    text = page.read_text(encoding="utf-8")
    spans = re.findall(r"`taskherd ([a-z][^`\n]*)`", text)
    for block in re.findall(r"(?ms)^```(?:sh|console)\n(.*?)^```$", text):
        spans += re.findall(r"(?:^|\s)(?:[\w./]*/)?taskherd ([a-z][^#|<>\n]*)", block)
    for span in spans:
        command: Any = typer.main.get_command(app)
        words = span.replace(",", " ").split()
        while words and isinstance(command, typer.core.TyperGroup):
            found = command.get_command(typer.Context(command), words[0])
            if found is None:
                break
            command = found
            words.pop(0)
        assert command.name != "taskherd", f"taskherd {span}"
        options = {option for each in command.params for option in each.opts}
        written = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
        assert isinstance(command, typer.core.TyperGroup) or set(written) <= options, f"taskherd {span}"


def test_decisions_are_listed() -> None:
    """``docs/architecture.md`` lists every decision under its title."""
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs" / "adr").glob("*.md")):
        title = page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        assert f"[{title}](adr/{page.name})" in architecture


def test_the_readme_example_uses_the_shipped_directory() -> None:
    """The ids in the README's example exist in the directory that ``make dev`` loads."""
    directory = (ROOT / "deploy" / "example-directory.yaml").read_text(encoding="utf-8")
    ids = list(matches(r'(?m)^[A-Z]+ = "([0-9a-f-]{36})"', ROOT / "README.md"))
    assert ids
    assert all(f"id: {each}" in directory for each in ids)


def test_the_paths_for_a_proxy_are_those_of_the_board() -> None:
    """``docs/operations.md`` tells a proxy to pass what each path of the board begins with."""
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    told = re.search(r"the proxy in front pass\s(.*?)\sas well\sas\s`/api`", operations, re.DOTALL)
    assert told is not None
    served = {"/" + each.path.split("/")[1].partition("{")[0] for each in BOARD}
    assert set(re.findall(r"`([^`]+)`", told[1])) == served


def test_the_tests_that_hold_the_trust_table_exist() -> None:
    """Each test that ``SECURITY.md`` names is there: of agents, runners, clients, members, admins and roles."""
    named = [name.split("::") for name in matches(r"`(tests/[^`]+)`", ROOT / "SECURITY.md")]
    assert len(named) == 8
    for path, test in named:
        assert re.search(rf"(?m)^(async )?def {test}\(", (ROOT / path).read_text(encoding="utf-8")), (path, test)


def test_the_runbook_explains_every_reason_of_dead_letters() -> None:
    """Its table has each code that a dead letter can have, once, and no other."""
    runbook = (ROOT / "docs" / "runbook.md").read_text("utf-8")
    section = runbook.partition("## TaskherdDeadLetters")[2].partition("\n## ")[0]
    rows = re.findall(r"(?m)^ *\| (`[^|]*) \|", section)
    named = [reason for row in rows for reason in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(DeadLetterReason)


@every_page
def test_linked_headings_exist(page: Path) -> None:
    """Every link into a page names one of its headings, as GitHub makes anchors of them."""
    links = re.findall(r"\]\(((?:[\w./-]+\.md)?)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if link[1] not in anchors(page.parent / link[0] if link[0] else page)] == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in matches(r"(?m)^#+ (.+)$", page)}


def test_the_pages_name_the_limits_of_alerts() -> None:
    """What ``docs/operations.md`` and ``docs/runbook.md`` say about when an alert fires is what its rule says."""
    rules = (ROOT / "deploy" / "prometheus" / "rules").glob("*.yml")
    groups = [group for file in rules for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]
    alerts = {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}
    operations, runbook = (
        " ".join((ROOT / "docs" / name).read_text(encoding="utf-8").split()) for name in ("operations.md", "runbook.md")
    )
    standby, unhealthy = alerts["TaskherdStandbyUnused"], alerts["TaskherdAgentsUnhealthy"]
    assert standby["expr"].endswith("> 30")
    assert standby["for"] == "5m"
    assert "TaskherdStandbyUnused fires when the lag was above 30 s for five minutes" in operations
    assert ">= 10" in unhealthy["expr"]
    assert "More than a fifth of at least ten agents are not healthy" in runbook


def test_the_number_of_parallel_tests_is_documented() -> None:
    """``CONTRIBUTING.md`` says in how many processes ``make test`` runs."""
    (processes,) = matches(r"\nPARALLEL = -n (\d+) --dist loadfile", ROOT / "Makefile")
    number = {"4": "four", "5": "five", "6": "six"}[processes]
    assert f"runs {number} files in parallel, in {number} processes" in (ROOT / "CONTRIBUTING.md").read_text("utf-8")


@pytest.mark.parametrize("agent", get_args(RunConfig.model_fields["agent"].annotation))
def test_the_agents_that_run_without_a_network_are_documented(agent: str) -> None:
    """``docs/runner.md`` names each ``agent`` that ``network: none`` accepts, and no other."""
    (row,) = matches(r"(?m)^\| `network` (.*)$", ROOT / "docs" / "runner.md")
    try:
        RunConfig.model_validate({"command": ["a"], "network": "none", "sandbox": "bwrap", "agent": agent})
        accepted = True
    except ValueError:
        accepted = False
    assert (f"`{agent}`" in row or f"`agent: {agent}`" in row) is accepted
