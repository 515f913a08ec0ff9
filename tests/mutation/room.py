"""Rooms: copies of the working tree with a Python of their own, in which mutated code runs and harms nothing else.

The room's Python finds the room's ``src`` before everything else, whatever the environment of a process says. Commands
run in a sandbox, because a mutated runner may kill the wrong process or delete the wrong folder: they have a private
process table and ``/tmp``, and can write only to their room.
"""

from __future__ import annotations

import compileall
import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.source import Mutation

ROOT = Path(__file__).parents[2]
WORK = ROOT / ".taskherd" / "mutants"
_STARTUP = "mutation_startup"


_running: set[subprocess.Popen[bytes]] = set()


def stop_all() -> None:
    """Kill everything that runs in rooms."""
    for process in tuple(_running):
        process.kill()  # the sandbox's other processes end with its first one


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its exit status, None if it was stopped at its time limit, and the end of its output."""

    status: int | None
    output: str


class Room:
    """A copy of the working tree."""

    def __init__(self, name: str) -> None:
        self.path = WORK / "rooms" / name
        self.python = self.path / ".venv" / "bin" / "python"

    def prepare(self) -> None:
        """Copy the working tree anew."""
        shutil.rmtree(self.path, ignore_errors=True)
        for name in tracked_files():
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", "--symlinks", self.path / ".venv"], check=True, timeout=60
        )
        packages = Path(sysconfig.get_path("purelib"))
        own = self._site_packages()
        own.joinpath("room.pth").write_text(
            f"{self.path / 'src'}\nimport site; site.addsitedir({str(packages)!r})\nimport {_STARTUP}\n"
        )
        shutil.copy2(Path(__file__).with_name("startup.py"), own / f"{_STARTUP}.py")
        self._copy_scripts(Path(sys.executable).parent)
        # With hashes, a file that is mutated and restored within a second is never run from the wrong bytecode.
        mode = py_compile.PycInvalidationMode.CHECKED_HASH
        for folder in ("src", "tests"):
            compileall.compile_dir(self.path / folder, quiet=2, invalidation_mode=mode)

    def _site_packages(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.path / ".venv" / "lib" / version / "site-packages"

    def _copy_scripts(self, programs: Path) -> None:
        """Copy the installed commands, which name their Python in their first line."""
        for program in filter(Path.is_file, programs.iterdir()):
            with program.open("rb") as file:
                head = file.read(200)
            if head.startswith(b"#!") and str(programs).encode() in head:
                target = self.path / ".venv" / "bin" / program.name
                target.write_bytes(program.read_bytes().replace(str(programs).encode(), str(target.parent).encode()))
                target.chmod(0o755)

    def mutate(self, mutation: Mutation, text: str) -> None:
        """Write the mutated file."""
        self._file(mutation).write_text(mutation.apply(text), encoding="utf-8")

    def restore(self, mutation: Mutation, text: str) -> None:
        """Write the file as it was."""
        self._file(mutation).write_text(text, encoding="utf-8")

    def _file(self, mutation: Mutation) -> Path:
        return self.path / "src" / "taskherd" / mutation.path

    def run(self, arguments: Sequence[str], environment: Mapping[str, str], limit: float) -> Ended:
        """Run this room's Python with arguments, at most ``limit`` seconds."""
        log = self.path / "output.log"
        command = [*sandbox(self.path), str(self.python), *arguments]
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.path,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            _running.add(process)
            try:
                status: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                process.kill()
                process.wait()
                _running.discard(process)
        return Ended(status, log.read_text(errors="replace")[-20_000:])


def sandbox(writable: Path) -> list[str]:
    """Return the command that runs another one with a private process table and ``/tmp``, writing only to a folder."""
    program = shutil.which("bwrap")
    if program is None:
        raise SystemExit("make mutants runs mutated code in a sandbox: install bubblewrap (apt-get install bubblewrap)")
    privileges = ["--cap-add", "ALL"] if os.geteuid() == 0 else []
    return [
        program, "--die-with-parent", "--unshare-pid", *privileges,
        "--ro-bind", "/", "/", "--dev-bind", "/dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp",  # noqa: S108 - its own
        "--bind", str(writable), str(writable),
    ]  # fmt: skip


def tracked_files() -> list[str]:
    """Return the files of the working tree that git tracks or would track, that exist."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    return sorted(name for name in names.split("\0") if name and (ROOT / name).is_file())
