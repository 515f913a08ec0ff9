"""Pictures of the board (``make shots``): each page, phone and desktop, light and dark, from a fleet of examples.

The page ``readme`` is Home at the end of ``make demo STAY=1``, light and dark, in ``docs/pictures``, where the README
shows it.

``python -m tests.board.shots --serve`` keeps everything running instead, until Ctrl-C or SIGTERM, and prints the
address and tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import sys
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

from aio_pika.abc import AbstractIncomingMessage

from examples.demo.main import STAY
from taskherd.api.board.files import board_files
from taskherd.dev import services
from taskherd.store import migrate
from tests.board.pages import Board, Page
from tests.harness.api import CAROL, OTHER, ApiHarness, open_api_harness
from tests.harness.browser import find_chromium, run_browser
from tests.harness.conversation import converse
from tests.harness.fleet import fill
from tests.harness.worker import ORGANIZATION

FOLDER = Path("build/shots")
README, README_FOLDER = "readme", Path("docs/pictures")
README_SIZE = (1180, 840)
"""Width and height in CSS pixels: what needs a person, the totals and what runs are on it."""
DEMO_WITHIN = 300.0
"""Seconds within which the demo has ended and waits."""
_STAYS = re.compile(r"the board stays at (\S+) until Ctrl-C; token: (\S+)")
PAGES = {
    "home": "/",
    "tasks": "/tasks",
    "new": "/new?template=codex",
    "task": "/tasks/alice/flaky-checkout",
    "task-working": "/tasks/alice/checkout-timeouts",
    "task-failed": "/tasks/bob/migrate-db",
    "fleet": "/fleet",
    "deleted": "/deleted",
    "sign-in": "/",
    "home-empty": "/",
    "question": "/tasks",
    "source": "/tasks",
    "offline": "/tasks",
}
"""Name of each picture and path of its page."""
READY = "document.querySelector('.page[data-ready], .page.sign-in')"
SIZES = {"wide": (1280, 900, False), "phone": (390, 844, True)}
"""Width and height in CSS pixels, and whether it is a phone."""
NO_GUTTER = "document.documentElement.style.scrollbarGutter = 'auto'"
"""Room for a scroll bar, which is on no picture, would be a stripe."""
MAX_HEIGHT = 3_000
"""Maximum height of a picture in CSS pixels."""


def main() -> None:
    """Start services, an API, a worker and a browser, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help="keep running and take no pictures")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("pages", nargs="*", help=f"which pages, of {', '.join(PAGES)} and {README}; default: all those")
    options = parser.parse_args()
    if README in options.pages:
        asyncio.run(_take_for_readme())
        options.pages.remove(README)
        if not options.pages:
            return
    with (
        tempfile.TemporaryDirectory(prefix="taskherd-shots-") as folder,
        services.start(Path(folder), announce=print, fast=True) as running,
    ):
        migrate.upgrade(running.database_url)
        asyncio.run(_run(running, options))


async def _run(running: services.Services, options: argparse.Namespace) -> None:
    prefix = f"s{uuid.uuid4().hex[:8]}"
    async with open_api_harness(running.database_url, running.amqp_url, prefix, agent_lost_after=3_600) as harness:
        await fill_all(harness)
        if options.serve:
            print(harness.base, harness.tokens, flush=True)  # noqa: T201 - for the person at the terminal
            await _serve()
        else:
            await take(harness, options.folder, options.pages or list(PAGES))


async def _serve() -> None:
    """Serve what is edited meanwhile, until Ctrl-C or SIGTERM, which the API in this process would take for itself."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    while not stopped.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await stopped.wait()
        board_files.cache_clear()


async def _ack(message: AbstractIncomingMessage) -> None:
    await message.ack()


async def fill_all(harness: ApiHarness) -> None:
    """Fill the fleet, with a conversation in some of its tasks, runners, and the rates of a day."""
    ids = await fill(harness)
    for name in ("flaky-checkout", "checkout-timeouts", "migrate-db"):
        await converse(harness, ids[name])
    for name, title, user in (("spike-bun", "Try Bun", "alice"), ("spike-vite", "Try Vite for the shop", "carol")):
        await harness.create(harness.alice, name=name, display_name=title)
        assert (await harness.clients[user].delete(f"/tasks/alice/{name}")).status_code == 202
    for runner, pool in (("runner-3", "default"), ("runner-7", "default"), ("gpu-1", "gpu")):
        assert (await harness.worker.ask({"type": "runner.hello", "runner": runner, "pool": pool}))["ok"]
    for target in ("default", "runner-3", "gpu-1"):  # connected; runner-7 is not
        queue = await harness.worker.channel.get_queue(f"{harness.worker.prefix}.work.{target}", ensure=False)
        await queue.consume(_ack)
    await harness.worker.stop_dead_letters()
    await harness.worker.report({"type": "agent.weather", "task_id": str(ids["migrate-db"]), "sky": "clear"})
    await harness.worker.report(raw=b'{"type": "agent.heartbeat", "task_id": ')
    await harness.worker.database.execute(
        f"""INSERT INTO build_claims
        SELECT task_id, build_number, CASE WHEN random() < 0.7 THEN 'runner-3' ELSE 'gpu-1' END, now() FROM leases
        ON CONFLICT DO NOTHING;
        UPDATE runner_hellos SET hello_at = now() - interval '6 minutes' WHERE name = 'runner-7';
        UPDATE organizations SET active = false WHERE id = '{OTHER}';
        INSERT INTO dead_letter_rates (hour, reason, letters) VALUES
            (date_trunc('hour', now()), 'unknown_type', 12), (date_trunc('hour', now()), 'build_conflict', 2);
        INSERT INTO task_rates
        SELECT date_trunc('hour', now()) - make_interval(hours => h), '{ORGANIZATION}', '{CAROL}',
               (14 + 10 * sin(h / 3.0))::int, (11 + 9 * sin((h - 1) / 3.0))::int, (h * 7 % 5)
        FROM generate_series(1, 23) AS h"""
    )


async def take(harness: ApiHarness, folder: Path, names: list[str]) -> None:
    """Take the pictures of these pages."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    async with run_browser(find_chromium(print)) as browser:
        board = Board(harness, browser)
        page = await board.open("/", "carol")
        await page.tab.evaluate("localStorage.setItem('taskherd-home-scope', 'everyone')")
        others = {
            "sign-in": Page(await browser.new_tab(private=True), harness.base),
            "home-empty": await board.open("/", "mallory"),
        }
        for each in (page, *others.values()):
            await each.tab.call("Emulation.setScrollbarsHidden", hidden=True)
        for name in names:
            shown = others.get(name, page)
            for size, (width, height, is_phone) in SIZES.items():
                await shown.tab.resize(width, height, scale=2 if is_phone else 1, mobile=is_phone)
                for scheme in ("light", "dark"):
                    await shown.tab.prefer(scheme)
                    await shown.go(PAGES[name])
                    await shown.tab.until(READY)
                    await _pose(shown, name)
                    await shown.tab.evaluate(NO_GUTTER)
                    full = min(
                        MAX_HEIGHT, max(height, await shown.tab.evaluate("document.documentElement.scrollHeight"))
                    )
                    await shown.tab.resize(width, full, scale=2 if is_phone else 1, mobile=is_phone)
                    picture = await shown.tab.screenshot()
                    await asyncio.to_thread((folder / f"{name}-{size}-{scheme}.png").write_bytes, picture)
                    await shown.tab.resize(width, height, scale=2 if is_phone else 1, mobile=is_phone)
        for each in (page, *others.values()):
            assert each.tab.errors == [], each.tab.errors


async def _pose(page: Page, name: str) -> None:
    """Do what somebody does to see this, if that is more than going there."""
    if name == "question":
        await page.click("thead input")
        await page.click(".selection .acts button", "Delete")
        await page.tab.until("document.querySelector('dialog[open]')")
    elif name == "source":
        await page.tab.press("y")
        await page.tab.until("document.querySelector('dialog[open]')")
    elif name == "offline":
        await page.tab.evaluate("document.getElementById('offline').hidden = false")


async def _take_for_readme() -> None:
    """Run the demo, take pictures of Home as it is left, and end the demo."""
    await asyncio.to_thread(README_FOLDER.mkdir, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="taskherd-shots-") as folder:
        demo = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "examples.demo", "--data", folder),
            env={**os.environ, STAY: "1", "PYTHONUNBUFFERED": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(DEMO_WITHIN), run_browser(find_chromium(print)) as browser:
                base, token = await _stays(demo)
                page = Page(await browser.new_tab(private=True), base)
                await page.tab.resize(*README_SIZE)
                await page.tab.call("Emulation.setScrollbarsHidden", hidden=True)
                await page.go("/")
                await page.sign_in(token)
                await page.tab.evaluate("localStorage.setItem('taskherd-home-scope', 'everyone')")
                for scheme in ("light", "dark"):
                    await page.tab.prefer(scheme)
                    await page.go("/")
                    await page.tab.until("document.querySelector('.page[data-ready]')")
                    await page.tab.evaluate(NO_GUTTER)
                    picture = await page.tab.screenshot()
                    await asyncio.to_thread((README_FOLDER / f"home-{scheme}.png").write_bytes, picture)
        finally:
            with suppress(ProcessLookupError):
                demo.send_signal(signal.SIGINT)
            await demo.communicate()


async def _stays(demo: asyncio.subprocess.Process) -> tuple[str, str]:
    """Wait until the demo stays, and return the board's address and a token. Fail with the demo's output if it ends."""
    assert demo.stdout is not None
    output = ""
    async for line in demo.stdout:
        output += line.decode()
        if found := _STAYS.search(output):
            return found[1], found[2]
    raise AssertionError(output)


if __name__ == "__main__":
    main()
