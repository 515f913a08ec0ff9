"""A fleet that looks like one in use: a dozen people's tasks in every state, for pictures of the board."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
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
    ),
    Example(
        "drop-python-39",
        "Drop support for Python 3.9",
        "Drop Python 3.9 everywhere and use what 3.10 brings",
        CAROL,
        state="complete",
        message="All 214 tests pass",
        uri=f"{SHOP}/1192",
    ),
    Example(
        "flaky-search",
        "Find out why search is flaky",
        "The search tests fail once in twenty runs",
        state="complete",
        message="It was the index refresh; fixed and documented",
        uri=f"{SHOP}/1201",
    ),
    Example(
        "nightly-audit",
        "Audit the dependencies",
        "Audit all dependencies and report what is outdated",
        BOB,
        status="lost",
    ),
    Example(
        "migrate-db",
        "Migrate the billing schema",
        "Add the column invoices.currency and migrate all rows",
        BOB,
        CODEX_VERSION,
        ends={"why": "exited", "status": 3, "words": "alembic: target database is not up to date."},
    ),
    Example(
        "profile-import",
        "Profile the import",
        "The import of 2 million rows takes four hours: find out where the time goes",
        state="working",
        message="Loading the whole file",
        ends={"why": "out_of_memory", "words": "Killed"},
    ),
    Example(
        "upgrade-django", "Upgrade Django to 5.2", "Upgrade Django to 5.2 and fix what breaks", CAROL, status="pending"
    ),
    Example("rename-cart", "Rename Cart to Basket", "Rename Cart to Basket in code, API and texts", status="paused"),
    Example(
        "tidy-css",
        "Tidy up the style sheets",
        "Remove unused rules from all style sheets",
        BOB,
        OPENCODE_VERSION,
        status="initializing",
    ),
    Example(
        "release-notes",
        "Write the release notes",
        "Write the release notes of 4.2 from the merged pull requests",
        version=CODEX_VERSION,
        state="idle",
        message="May I run `npm publish --dry-run` to list the files?",
    ),
    Example(
        "flaky-checkout",
        "Fix the flaky checkout test",
        "Fix the flaky checkout test in the shop repository and open a pull request",
        version=CODEX_VERSION,
        state="idle",
        message="Which one shall I take: pin the clock, or mock the network?",
    ),
    Example(
        "slow-invoices",
        "Speed up the invoice page",
        "The invoice page takes 3 s: make it fast",
        CAROL,
        state="idle",
        message="Done so far: 2.9 s to 340 ms. Shall I also cache the totals?",
        uri=f"{SHOP}/1210",
    ),
    Example(
        "checkout-timeouts",
        "Retry payments that time out",
        "Retry payments that time out, at most three times and never twice at once",
        message="Running the tests in services/checkout (214 of 980)",
    ),
    Example(
        "typed-events",
        "Type the event bus",
        "Give every event of the bus a type",
        BOB,
        message="Writing types for 38 events",
    ),
    Example(
        "docs-links",
        "Check the links in the documentation",
        "Find dead links in the documentation and repair them",
        version=OPENCODE_VERSION,
        message="Following 1,204 links; 17 are dead so far",
        uri="https://github.com/acme/docs/pull/420",
    ),
    Example(
        "a11y-forms",
        "Make the forms accessible",
        "Make all forms of the shop accessible and add axe to their tests",
        CAROL,
        message="Labelling the address form, then every field of the checkout that only has a placeholder",
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
    return ids


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
    if example.status == "paused":
        actor = {"actor_id": str(example.owner)}
        assert (await worker.command("task.pause", task_id, **actor))["ok"]
        await worker.report(build_report(task_id, 2, "stop", "succeeded"))
    ends = {"why": "lost"} if example.status == "lost" else example.ends
    if ends:
        at = (datetime.now(UTC) - timedelta(seconds=90)).isoformat()
        await worker.report(make_report("agent.exit", task_id, build_number=1, observed_at=at, **ends))
