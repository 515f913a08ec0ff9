"""``make mutants``: try a sample of mutations, and print how many the tests notice and which they do not."""

from __future__ import annotations

import argparse
import ast
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

from taskherd.dev import services
from taskherd.dev.rabbitmq import RabbitNode
from tests.harness import lent_rabbitmq
from tests.mutation import equivalents, report
from tests.mutation.coverage_map import FOLDERS, TestMap, branch_coverage, measure
from tests.mutation.room import ROOT, WORK, Room, stop_all
from tests.mutation.sample import PACKAGES, all_mutations, draw
from tests.mutation.selection import Selector, qualified_name
from tests.mutation.source import Mutation
from tests.mutation.trial import Outcome, Trials, Verdict

SOURCES = ROOT / "src" / "taskherd"


def main() -> int:
    """Try the sample, print the report, and return 1 if the score is below the wanted one."""
    options = _options()
    WORK.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_lock())
        environment = stack.enter_context(_services())
        measured = measure(environment, options.folders, options.processes, say)
        branches = branch_coverage(options.folders, options.packages)
        records: list[dict[str, Any]] = []
        if options.count:
            records = _Campaign(options, measured, environment).run()
    print(report.render(records, branches, options.packages))  # noqa: T201 - for the terminal
    noticed, tried = report.score(records)
    return int(100 * noticed < options.score * tried)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make mutants", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=1, help="another seed draws another sample")
    parser.add_argument("--count", type=int, default=200, help="number of mutations in the sample, 0 to measure only")
    parser.add_argument("--packages", nargs="+", default=PACKAGES, choices=PACKAGES, metavar="PACKAGE")
    parser.add_argument("--folders", nargs="+", default=FOLDERS, help="folders of tests to run")
    parser.add_argument(
        "--processes", type=int, default=1, help="folders of tests to measure, and mutations to try, at a time"
    )
    parser.add_argument("--hours", type=float, default=6, help="start no trial after this time")
    parser.add_argument("--score", type=float, default=95, help="the score in percent below which the exit status is 1")
    return parser.parse_args()


class _Campaign:
    """The trials of one sample; their results are kept, so that a campaign that was stopped goes on."""

    def __init__(self, options: argparse.Namespace, measured: TestMap, environment: Mapping[str, str]) -> None:
        self._options = options
        self._selector = Selector(SOURCES, measured)
        self._equivalents = equivalents.load()
        self._file = WORK / f"{options.seed}.jsonl"
        self._writing = Lock()
        self._known = {equivalents.identity(record): record for record in _lines(self._file)}
        self._rooms = [Room(f"trials{number}") for number in range(options.processes)]
        self._idle: SimpleQueue[Trials] = SimpleQueue()
        for room in self._rooms:
            self._idle.put(Trials(room, measured, environment))
        self._ends_at = time.monotonic() + options.hours * 3600

    def run(self) -> list[dict[str, Any]]:
        """Return a record of each trial."""
        for room in self._rooms:
            room.prepare()
        records: list[dict[str, Any]] = []
        packages: Sequence[str] = self._options.packages
        for number, package in enumerate(packages):
            share = self._options.count // len(packages) + (number < self._options.count % len(packages))
            records += self._try_package(package, share)
        return records

    def _try_package(self, package: str, share: int) -> list[dict[str, Any]]:
        """Try as many mutations as this, those that are drawn first, several at a time."""
        drawn = iter(draw(all_mutations(SOURCES, package), self._options.seed))
        records: list[dict[str, Any]] = []
        tried = 0
        pending: set[Future[dict[str, Any]]] = set()
        with ThreadPoolExecutor(self._options.processes) as pool:
            try:
                while True:
                    if time.monotonic() <= self._ends_at:
                        missing = share - tried - len(pending)
                        pending |= {pool.submit(self._record, mutation) for mutation in islice(drawn, missing)}
                    if not pending:
                        return records
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for record in (each.result() for each in done):
                        if record["outcome"] == Outcome.INVALID:
                            continue
                        tried += record["outcome"] != Outcome.EQUIVALENT
                        records.append(record)
                        say(f"{package} {tried}/{share}: {_one_line(record)}")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                stop_all()
                raise

    def _record(self, mutation: Mutation) -> dict[str, Any]:
        """Return the record of a mutation, from an earlier run if the tests to run are the same, else from a trial."""
        text = (SOURCES / mutation.path).read_text(encoding="utf-8")
        before, after = mutation.changed_lines(text)
        scope = qualified_name(ast.parse(text), mutation.line)
        tests = self._selector.tests(mutation)
        place: dict[str, Any] = {**asdict(mutation), "package": mutation.package}
        place |= {"scope": scope, "before": before, "after": after}
        entry = equivalents.find(place, self._equivalents)
        if entry is not None:
            verdict = Verdict(Outcome.EQUIVALENT, error=entry.reason)
            return {**place, **verdict.record(), "seconds": 0.0}
        known = self._known.get(equivalents.identity(place))
        if known is not None and (known["outcome"] not in report.UNNOTICED or known["tests"] == tests):
            return known
        started = time.monotonic()
        trials = self._idle.get()
        try:
            verdict = trials.run(mutation, text, tests)
        finally:
            self._idle.put(trials)
        record = {**place, **verdict.record(), "seconds": round(time.monotonic() - started, 1), "tests": tests}
        with self._writing, self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        return record


def _one_line(record: Mapping[str, Any]) -> str:
    return f"{record['outcome']} in {record['seconds']:.0f} s, {record['operator']}, {record['path']}:{record['line']}"


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@contextmanager
def _services() -> Iterator[dict[str, str]]:
    """Yield the environment variables of a RabbitMQ and a PostgreSQL that all runs share."""
    with services.start(WORK / "services", announce=say, fast=True) as running:
        environment = {services.AMQP_URL: running.amqp_url, services.DATABASE_URL: running.database_url}
        if isinstance(running.rabbit, RabbitNode):
            environment[lent_rabbitmq.FOLDER] = str(running.rabbit.home)
        yield environment


@contextmanager
def _lock() -> Iterator[None]:
    """Refuse to run twice at the same time."""
    with (WORK / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit("make mutants is already running") from None
        yield


def say(line: str) -> None:
    """Print a line about the progress."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - for the terminal


if __name__ == "__main__":
    os.nice(10)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # the services are stopped, too
    sys.exit(main())
