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
    "An upper room may import a lower one, never the other way; rooms in one row do not import each other": (
        ("dev.ports", "cli.output"),
        ("api.app", "dev.services"),
        ("client.tasks", "worker.batch"),
        ("store.tasks", "timeouts"),
        ("timeouts", "worker.context"),
        ("domain.fold", "messages.reports"),
        ("observability.ops", "domain.task"),
        ("http_protocol", "observability.metrics"),
        ("settings.fields", "http_protocol"),
        ("retry", "settings"),
        ("errors", "retry"),
        ("backoff", "errors"),
        ("clock", "sse"),
    ),
    "The processes (api, worker, runner) never import each other": (
        ("api.tasks.explain", "worker.context"),
        ("worker.app", "runner.outbox"),
        ("runner.app", "api.app"),
    ),
    "store, messages and broker never import each other": (
        ("store.outbox", "messages.events"),
        ("messages.events", "broker.publish"),
        ("broker.rpc", "store.commands"),
    ),
    "In the worker, consumers and sweeper never import each other; what they use never imports them": (
        ("worker.report_consumer", "worker.command_consumer"),
        ("worker.sweeper", "worker.report_consumer"),
        ("worker.relay", "worker.sweeper"),
        ("worker.reconcile", "worker.relay"),
        ("worker.load", "worker.save"),
    ),
    "domain is pure: no I/O, no asyncio, no logging, no clock, no framework": (
        ("domain.fold", "asyncio"),
        ("domain.fold", "logging"),
        ("domain.fold", "os"),
        ("domain.fold", "pydantic"),
        ("domain.liveness", "clock"),
        ("domain.liveness", "time"),
    ),
    "domain, messages and store neither log nor count": (
        ("domain.fold", "logging"),
        ("messages.decoding", "structlog"),
        ("store.stats", "prometheus_client"),
        ("store.engine", "observability.metrics"),
    ),
    "Only the composition roots of worker and runner own a clock": (
        ("worker.reconcile", "clock"),
        ("store.timers", "clock"),
    ),
    "broker carries bytes: it knows no task and no message": (
        ("broker.publish", "domain.task"),
        ("broker.rpc", "messages.commands"),
        ("broker.consume", "store.inputs"),
    ),
    "client imports nothing of the server, only base modules": (
        ("client.mcp_tools", "messages.limits"),
        ("client.http", "settings"),
        ("client.tasks", "domain.task"),
    ),
    "runner never touches the database": (
        ("runner.app", "store.engine"),
        ("runner.journal", "asyncpg"),
        ("runner.journal", "sqlalchemy"),
    ),
    "Only the worker's reconcile path and sweeper read and write tasks through store.tasks": (
        ("api.tasks.queries", "store.tasks"),
        ("worker.command_consumer", "store.tasks"),
    ),
    "Only store uses SQLAlchemy, asyncpg and Alembic": (
        ("worker.maintenance", "sqlalchemy"),
        ("api.tasks.queries", "asyncpg"),
        ("cli.db", "alembic"),
    ),
    "Only broker uses aio-pika, aiormq and pamqp": (
        ("runner.claims", "aio_pika"),
        ("api.change_feed", "aiormq"),
        ("worker.relay", "pamqp"),
    ),
    "Only observability uses prometheus_client and OpenTelemetry": (
        ("worker.relay", "prometheus_client"),
        ("api.http.endpoint", "opentelemetry"),
    ),
    "Only cli uses typer and rich": (("client.errors", "typer"), ("dev.dev", "rich")),
    "Only dev uses the libraries that start private services": (
        ("worker.app", "docker"),
        ("runner.workspaces.processes", "psutil"),
        ("cli.doctor", "testcontainers"),
    ),
    "Only the MCP tools use mcp": (("cli.mcp", "mcp"),),
    "taskherd imports no tests, examples or benchmarks": (
        ("dev.dev", "examples"),
        ("cli.dev", "benchmarks"),
        ("observability.failpoints", "tests"),
    ),
}
STANDARD_LIBRARY_ONLY = ("runner/shim.py", "observability/health.py")
"""Files that a process for each agent, or each health check, runs: with other imports they start slowly and grow."""


@pytest.fixture(scope="module")
def imports() -> ImportGraph:
    """Every import of the package."""
    return GraphBuilder().build([PACKAGE], None, include_external_packages=True)


def is_kept(contract: dict[str, Any], graph: ImportGraph) -> bool:
    """Return whether the imports keep the contract; a check may change the graph, so it gets a copy."""
    checker = TYPES[contract["type"]](contract["name"], OPTIONS.session_options, contract)
    return checker.check(deepcopy(graph), verbose=False).kept


def full_name(module: str, graph: ImportGraph) -> str:
    """Return the name of a module of taskherd, given without the package, or of a library."""
    return f"{PACKAGE}.{module}" if f"{PACKAGE}.{module}" in graph.modules else module


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
        source, target = full_name(importer, imports), full_name(imported, imports)
        assert source in imports.modules
        if target not in changed.modules:
            changed.add_module(target, is_squashed=True)
        changed.add_import(importer=source, imported=target)
        if is_kept(CONTRACTS[name], changed):
            missed.append((importer, imported))
    assert missed == []


def test_a_new_room_needs_a_place(imports: ImportGraph) -> None:
    """A room that no layer names breaks the contract of layers."""
    [layers] = [contract for contract in CONTRACTS.values() if contract.get("exhaustive")]
    changed = deepcopy(imports)
    changed.add_module(f"{PACKAGE}.utils")
    assert not is_kept(layers, changed)


@pytest.mark.parametrize("path", STANDARD_LIBRARY_ONLY)
def test_standard_library_only(path: str) -> None:
    """The shim of an agent and the health check import nothing but the standard library."""
    tree = ast.parse((ROOT / "src" / "taskherd" / path).read_text(encoding="utf-8"))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or "."] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    assert imported <= sys.stdlib_module_names
