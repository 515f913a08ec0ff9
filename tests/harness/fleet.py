"""A fleet that looks like one in use: a dozen people's tasks in every state, for pictures of the board."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tests.harness.api import BOB, CAROL, ApiHarness
from tests.harness.worker import ALICE, ORGANIZATION, VERSION, build_report, make_report

CODEX, OPENCODE = uuid.UUID(int=0xB3), uuid.UUID(int=0xB4)
CODEX_VERSION, OPENCODE_VERSION = uuid.UUID(int=0xC3), uuid.UUID(int=0xC4)
TEMPLATES = f"""
INSERT INTO templates (id, organization_id, name, display_name, icon, active_version_id) VALUES
    ('{CODEX}', '{ORGANIZATION}', 'codex', 'Codex', '', '{CODEX_VERSION}'),
    ('{OPENCODE}', '{ORGANIZATION}', 'opencode', 'OpenCode', '', '{OPENCODE_VERSION}');
INSERT INTO template_versions (id, template_id, name, run) VALUES
    ('{CODEX_VERSION}', '{CODEX}', 'v4', '{{}}'), ('{OPENCODE_VERSION}', '{OPENCODE}', 'v2', '{{}}');
"""
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
OPTIONS = [
    {"id": "once", "label": "Allow once", "kind": "allow_once"},
    {"id": "always", "label": "Always allow", "kind": "allow_always"},
    {"id": "no", "label": "No", "kind": "reject_once"},
]
EDIT = {
    "file_path": "tests/conftest.py",
    "old_string": "@pytest.fixture\ndef client():\n    return Client(app)\n",
    "new_string": "@pytest.fixture\ndef client(monkeypatch):\n    monkeypatch.setattr(clock, 'now', lambda: NOON)\n"
    "    return Client(app)\n",
}
SHOP = "https://github.com/acme/shop/pull"


@dataclass(frozen=True)
class Example:
    """A task: what it is about, and the reports that bring it where it is."""

    name: str
    title: str
    prompt: str
    owner: uuid.UUID = ALICE
    version: uuid.UUID = VERSION
    state: str = "working"
    message: str = ""
    uri: str = ""
    ends: dict[str, Any] = field(default_factory=dict)
    status: str = "active"
    asks: tuple[dict[str, Any], ...] = ()
    """The requests of its agent that are open."""
    age: float = 8
    """Minutes since what it shows began."""


EXAMPLES = (
    Example(
        "translate-help",
        "Translate the help pages",
        "Translate the help pages into German and French",
        BOB,
        OPENCODE_VERSION,
        "complete",
        "Opened a pull request with 41 pages",
        "https://github.com/acme/docs/pull/418",
        age=64,
    ),
    Example(
        "drop-python-39",
        "Drop support for Python 3.9",
        "Drop Python 3.9 everywhere and use what 3.10 brings",
        CAROL,
        state="complete",
        message="All 214 tests pass",
        uri=f"{SHOP}/1192",
        age=190,
    ),
    Example(
        "flaky-search",
        "Find out why search is flaky",
        "The search tests fail once in twenty runs",
        state="complete",
        message="It was the index refresh; fixed and documented",
        uri=f"{SHOP}/1201",
        age=31,
    ),
    Example(
        "nightly-audit",
        "Audit the dependencies",
        "Audit all dependencies and report what is outdated",
        BOB,
        status="lost",
        age=6,
    ),
    Example(
        "migrate-db",
        "Migrate the billing schema",
        "Add the column invoices.currency and migrate all rows",
        BOB,
        CODEX_VERSION,
        ends={"why": "exited", "status": 3, "words": "alembic: target database is not up to date."},
        age=2,
    ),
    Example(
        "profile-import",
        "Profile the import",
        "The import of 2 million rows takes four hours: find out where the time goes",
        state="working",
        message="Loading the whole file",
        ends={"why": "out_of_memory", "words": "Killed"},
        age=17,
    ),
    Example(
        "upgrade-django",
        "Upgrade Django to 5.2",
        "Upgrade Django to 5.2 and fix what breaks",
        CAROL,
        status="pending",
        age=3,
    ),
    Example(
        "rename-cart",
        "Rename Cart to Basket",
        "Rename Cart to Basket in code, API and texts",
        status="paused",
        age=1500,
    ),
    Example(
        "tidy-css",
        "Tidy up the style sheets",
        "Remove unused rules from all style sheets",
        BOB,
        OPENCODE_VERSION,
        status="initializing",
        age=0.4,
    ),
    Example(
        "release-notes",
        "Write the release notes",
        "Write the release notes of 4.2 from the merged pull requests",
        version=CODEX_VERSION,
        state="idle",
        message="May I run `npm publish --dry-run` to list the files?",
        asks=(
            {
                "kind": "approval",
                "title": "May I run `npm publish --dry-run` to list the files?",
                "tool": {"kind": "execute", "name": "Bash", "input": {"command": "npm publish --dry-run"}},
                "options": OPTIONS,
            },
        ),
        age=12,
    ),
    Example(
        "flaky-checkout",
        "Fix the flaky checkout test",
        "Fix the flaky checkout test in the shop repository and open a pull request",
        version=CODEX_VERSION,
        state="idle",
        message="Which one shall I take: pin the clock, or mock the network?",
        asks=(
            {
                "kind": "question",
                "title": "Which one shall I take: pin the clock, or mock the network?",
                "detail": "Pinning is two lines in `conftest.py`. Mocking touches 14 tests, but ends **timeouts** too.",
                "options": [
                    {"id": "clock", "label": "Pin the clock", "kind": "other"},
                    {"id": "network", "label": "Mock the network", "kind": "other"},
                ],
            },
            {
                "kind": "approval",
                "title": "May I edit `tests/conftest.py`?",
                "tool": {"kind": "edit", "name": "Edit", "input": EDIT},
                "options": OPTIONS,
            },
        ),
        age=4,
    ),
    Example(
        "slow-invoices",
        "Speed up the invoice page",
        "The invoice page takes 3 s: make it fast",
        CAROL,
        state="idle",
        message="Done so far: 2.9 s to 340 ms. Shall I also cache the totals?",
        asks=(
            {
                "kind": "question",
                "title": "Shall I also cache the totals?",
                "detail": "Done so far: 2.9 s to 340 ms.",
            },
        ),
        uri=f"{SHOP}/1210",
        age=26,
    ),
    Example(
        "checkout-timeouts",
        "Retry payments that time out",
        "Retry payments that time out, at most three times and never twice at once",
        message="Running the tests in services/checkout (214 of 980)",
        age=8,
    ),
    Example(
        "typed-events",
        "Type the event bus",
        "Give every event of the bus a type",
        BOB,
        message="Writing types for 38 events",
        age=1.2,
    ),
    Example(
        "docs-links",
        "Check the links in the documentation",
        "Find dead links in the documentation and repair them",
        version=OPENCODE_VERSION,
        message="Following 1,204 links; 17 are dead so far",
        uri="https://github.com/acme/docs/pull/420",
        age=21,
    ),
    Example(
        "a11y-forms",
        "Make the forms accessible",
        "Make all forms of the shop accessible and add axe to their tests",
        CAROL,
        message="Labelling the address form, then every field of the checkout that only has a placeholder",
        age=0.6,
    ),
)


async def fill(harness: ApiHarness) -> dict[str, uuid.UUID]:
    """Create the tasks and report what happened to them; return their ids by name."""
    worker = harness.worker
    await worker.database.execute(TEMPLATES)
    ids: dict[str, uuid.UUID] = {}
    for example in EXAMPLES:
        fields: dict[str, Any] = {"owner_id": str(example.owner), "actor_id": str(example.owner)}
        ids[example.name] = await worker.create(
            name=example.name,
            display_name=example.title,
            input=example.prompt,
            template_version_id=str(example.version),
            **fields,
        )
    for example in EXAMPLES:
        await _report(harness, example, ids[example.name])
    for example in EXAMPLES:
        await _age(harness, ids[example.name], timedelta(minutes=example.age))
    return ids


async def _age(harness: ApiHarness, task_id: uuid.UUID, by: timedelta) -> None:
    """Make a task look as if all that happened to it was earlier; the next report undoes that in part."""
    row = await harness.worker.database.fetchrow("SELECT document, state FROM tasks WHERE id = $1", task_id)
    assert row is not None

    def earlier(match: re.Match[str]) -> str:
        return (datetime.fromisoformat(match[0]) - by).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    document = _TIME.sub(earlier, row["document"])
    state = json.loads(row["state"])
    state["since"] = _TIME.sub(earlier, state["since"])
    await harness.worker.database.execute(
        "UPDATE tasks SET document = $2, state = $3, updated_at = updated_at - $4::interval,"
        " created_at = created_at - $4::interval WHERE id = $1",
        task_id,
        document,
        json.dumps(state),
        by,
    )
    statement = "UPDATE agent_requests SET since = since - $2::interval WHERE task_id = $1"
    await harness.worker.database.execute(statement, task_id, by)


async def _report(harness: ApiHarness, example: Example, task_id: uuid.UUID) -> None:
    worker = harness.worker
    if example.status == "pending":
        return
    if example.status == "initializing":
        await worker.report(build_report(task_id, 1, "start", "running"))
        return
    await worker.make_active(task_id)
    if example.message:
        status = {"state": example.state, "message": example.message, "uri": example.uri}
        await worker.report(make_report("app.status", task_id, build_number=1, **status))
        await worker.until(lambda: worker.state(task_id).get("message") == example.message)
    for asked in example.asks:
        request = {"request_id": str(uuid.uuid4()), "state": "open", "build_number": 1, **asked}
        await worker.report(make_report("agent.request", task_id, **request))
    await worker.until(lambda: worker.document(task_id).get("requests_open", 0) == len(example.asks))
    if example.status == "paused":
        actor = {"actor_id": str(example.owner)}
        assert (await worker.command("task.pause", task_id, **actor))["ok"]
        await worker.report(build_report(task_id, 2, "stop", "succeeded"))
    if example.status == "lost":
        await worker.report(make_report("agent.disconnected", task_id, build_number=1))
        await worker.until(lambda: worker.document(task_id)["workspace_agent_health"]["healthy"] is False)
    ends = example.ends
    if ends:
        failed = {"state": "failed", "message": "The agent ended"}
        await worker.report(make_report("app.status", task_id, build_number=1, **failed))
        await worker.report(make_report("agent.exit", task_id, build_number=1, **ends))
        await worker.until(lambda: worker.document(task_id).get("agent_exit"))
