"""Each import contract of ``pyproject.toml`` catches the imports that it forbids."""

from __future__ import annotations

import ast
import sys
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from importlinter import configuration
from importlinter.adapters.building import GraphBuilder
from importlinter.application.use_cases import read_user_options
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.independence import IndependenceContract
from importlinter.contracts.layers import LayersContract
from importlinter.contracts.protected import ProtectedContract

if TYPE_CHECKING:
    from grimp import ImportGraph
    from importlinter import Contract

ROOT = Path(__file__).parents[2]
PACKAGE = "taskherd"
configuration.configure()
OPTIONS = read_user_options(str(ROOT / "pyproject.toml"))
CONTRACTS: dict[str, dict[str, Any]] = {contract["name"]: contract for contract in OPTIONS.contracts_options}
TYPES: dict[str, type[Contract]] = {
    "forbidden": ForbiddenContract,
    "independence": IndependenceContract,
    "layers": LayersContract,
    "protected": ProtectedContract,
}
FORBIDDEN: dict[str, tuple[tuple[str, str], ...]] = {
    "An upper package may import a lower one, never the other way; packages in one row do not import each other": (
        ("taskherd.dev.ports", "taskherd.cli.output"),
        ("taskherd.api.app", "taskherd.dev.services"),
        ("taskherd.client.tasks", "taskherd.worker.batch"),
        ("taskherd.store.tasks", "taskherd.timeouts"),
        ("taskherd.timeouts", "taskherd.worker.context"),
        ("taskherd.domain.fold", "taskherd.messages.reports"),
        ("taskherd.directory_file.run", "taskherd.messages.run_policy"),
        ("taskherd.observability.ops", "taskherd.domain.task"),
        ("taskherd.http_protocol", "taskherd.observability.metrics"),
        ("taskherd.settings.fields", "taskherd.http_protocol"),
        ("taskherd.retry", "taskherd.settings"),
        ("taskherd.errors", "taskherd.retry"),
        ("taskherd.backoff", "taskherd.errors"),
        ("taskherd.clock", "taskherd.sse"),
        ("taskherd.durations", "taskherd.errors"),
    ),
    "The processes (api, worker, runner) never import each other": (
        ("taskherd.api.tasks.explain", "taskherd.worker.context"),
        ("taskherd.worker.app", "taskherd.runner.outbox"),
        ("taskherd.runner.app", "taskherd.api.app"),
    ),
    "store, messages and broker never import each other": (
        ("taskherd.store.outbox", "taskherd.messages.events"),
        ("taskherd.messages.events", "taskherd.broker.publisher"),
        ("taskherd.broker.command_client", "taskherd.store.command_log"),
    ),
    "In the worker, consumers and sweeper never import each other; what they use never imports them": (
        ("taskherd.worker.report_consumer", "taskherd.worker.command_consumer"),
        ("taskherd.worker.sweeper", "taskherd.worker.report_consumer"),
        ("taskherd.worker.relay", "taskherd.worker.sweeper"),
        ("taskherd.worker.reconcile", "taskherd.worker.relay"),
        ("taskherd.worker.load", "taskherd.worker.save"),
    ),
    "domain is pure: no I/O, no asyncio, no logging, no clock, no framework": (
        ("taskherd.domain.fold", "asyncio"),
        ("taskherd.domain.fold", "logging"),
        ("taskherd.domain.fold", "os"),
        ("taskherd.domain.fold", "pydantic"),
        ("taskherd.domain.liveness", "taskherd.clock"),
        ("taskherd.domain.liveness", "time"),
    ),
    "domain, directory_file, messages and store neither log nor count": (
        ("taskherd.domain.fold", "logging"),
        ("taskherd.directory_file.parse", "logging"),
        ("taskherd.messages.decoding", "structlog"),
        ("taskherd.store.stats", "prometheus_client"),
        ("taskherd.store.engine", "taskherd.observability.metrics"),
    ),
    "Only the composition roots of worker and runner own a clock": (
        ("taskherd.worker.reconcile", "taskherd.clock"),
        ("taskherd.store.database_clock", "taskherd.clock"),
    ),
    "broker carries bytes: it knows no task and no message": (
        ("taskherd.broker.publisher", "taskherd.domain.task"),
        ("taskherd.broker.command_client", "taskherd.messages.commands"),
        ("taskherd.broker.consumer", "taskherd.store.inputs"),
    ),
    "client imports nothing of the server, only base modules": (
        ("taskherd.client.mcp_tools", "taskherd.messages.limits"),
        ("taskherd.client.http", "taskherd.settings"),
        ("taskherd.client.tasks", "taskherd.domain.task"),
    ),
    "client, and the commands that use it, need nothing of the extra `server`": (
        ("taskherd.cli.follow", "taskherd.settings"),
        ("taskherd.cli.output", "taskherd.directory_file.run"),
        ("taskherd.client.http", "httpx"),
        ("taskherd.durations", "pydantic"),
    ),
    "runner never touches the database": (
        ("taskherd.runner.app", "taskherd.store.engine"),
        ("taskherd.runner.journal", "asyncpg"),
        ("taskherd.runner.journal", "sqlalchemy"),
    ),
    "Only the worker's reconcile path, sweeper and timer checks use store.tasks": (
        ("taskherd.api.tasks.queries", "taskherd.store.tasks"),
        ("taskherd.worker.command_consumer", "taskherd.store.tasks"),
        ("taskherd.worker.command_consumer", "taskherd.store.task_creation"),
    ),
    "Only store uses SQLAlchemy, asyncpg and Alembic": (
        ("taskherd.worker.maintenance", "sqlalchemy"),
        ("taskherd.api.tasks.queries", "asyncpg"),
        ("taskherd.cli.db", "alembic"),
    ),
    "Only broker uses aio-pika, aiormq and pamqp": (
        ("taskherd.runner.claims", "aio_pika"),
        ("taskherd.api.change_feed", "aiormq"),
        ("taskherd.worker.relay", "pamqp"),
    ),
    "Only observability uses prometheus_client and OpenTelemetry": (
        ("taskherd.worker.relay", "prometheus_client"),
        ("taskherd.api.http.endpoint", "opentelemetry"),
    ),
    "Only cli uses typer and rich": (("taskherd.client.errors", "typer"), ("taskherd.dev.dev", "rich")),
    "Only dev uses the libraries that start private services": (
        ("taskherd.worker.app", "docker"),
        ("taskherd.runner.workspaces.processes", "psutil"),
        ("taskherd.cli.doctor", "testcontainers"),
    ),
    "taskherd does not use mcp, which is slow to import": (("taskherd.client.mcp_tools", "mcp"),),
    "taskherd imports no tests, examples or benchmarks": (
        ("taskherd.dev.dev", "examples"),
        ("taskherd.cli.dev", "benchmarks"),
        ("taskherd.observability.failpoints", "tests"),
    ),
}
SHIM = (
    "__init__.py", "runner/__init__.py", "runner/shim.py", "runner/line_feeder.py", "runner/process_table.py",
    "runner/segments.py", "runner/agent_process.py", "runner/privileges.py",
)  # fmt: skip
"""The modules that the shim of an agent loads; the last two only in processes that end or become another program."""
STANDARD_LIBRARY_ONLY = (*SHIM, "observability/health.py")
"""Files that a process for each agent, or each health check, runs: with other imports they start slowly and grow."""


@pytest.fixture(scope="module")
def imports() -> ImportGraph:
    """Return every import of the package."""
    return GraphBuilder().build([PACKAGE], None, include_external_packages=True)


def is_kept(contract: dict[str, Any], graph: ImportGraph) -> bool:
    """Return whether the imports keep the contract; a check may change the graph, so it gets a copy."""
    checker = TYPES[contract["type"]](contract["name"], OPTIONS.session_options, contract)
    return checker.check(deepcopy(graph), verbose=False).kept


def test_every_contract_is_broken_once() -> None:
    """Every contract in ``pyproject.toml`` has an import here that it must catch."""
    assert FORBIDDEN.keys() == CONTRACTS.keys()


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_contract_catches_what_it_forbids(name: str, imports: ImportGraph) -> None:
    """A contract is kept by the code, and broken by any single import that it forbids."""
    assert is_kept(CONTRACTS[name], imports)
    missed = []
    for importer, imported in FORBIDDEN[name]:
        changed = deepcopy(imports)
        assert {each for each in (importer, imported) if each.startswith(f"{PACKAGE}.")} <= imports.modules
        if imported not in imports.modules:
            changed.add_module(imported, is_squashed=True)
        changed.add_import(importer=importer, imported=imported)
        if is_kept(CONTRACTS[name], changed):
            missed.append((importer, imported))
    assert missed == []


def test_a_new_package_needs_a_layer(imports: ImportGraph) -> None:
    """A package that no layer names breaks the contract of layers."""
    [layers] = [contract for contract in CONTRACTS.values() if contract.get("exhaustive")]
    changed = deepcopy(imports)
    changed.add_module(f"{PACKAGE}.utils")
    assert not is_kept(layers, changed)


@pytest.mark.parametrize("path", STANDARD_LIBRARY_ONLY)
def test_standard_library_only(path: str) -> None:
    """The shim of an agent and the health check import the standard library, and the shim its own modules, only."""
    tree = ast.parse((ROOT / "src" / "taskherd" / path).read_text(encoding="utf-8"))
    imported = {
        f"{node.module}.{each.name}" if isinstance(node, ast.ImportFrom) else each.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for each in node.names
    }
    own = {f"taskherd.{module.removesuffix('.py').replace('/', '.')}" for module in SHIM if path in SHIM}
    others = {name for name in imported if not any(name == each or name.startswith(f"{each}.") for each in own)}
    assert {name.partition(".")[0] for name in others} <= sys.stdlib_module_names
