"""The sandbox of an agent: bubblewrap, which gives it mount, pid and ipc namespaces of its own, and perhaps no network.

See https://github.com/containers/bubblewrap and namespaces(7).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from taskherd.errors import Unavailable
from taskherd.runner import privileges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.directory_file.run import Network
    from taskherd.runner.workspaces.folders import TaskFolder

PROGRAM: Final = "bwrap"
DATA: Final = ".taskherd"
"""The folder of ``taskherd dev``, with the runner's by default, and with credentials that may do all."""
_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_CONFIGURATION: Final = (
    *("alternatives", "ca-certificates", "ca-certificates.conf"),
    *(f"ssl/{name}" for name in ("certs", "ca-bundle.pem", "cert.pem", "ct_log_list.cnf", "openssl.cnf")),
    *(f"pki/tls/{name}" for name in ("certs", "cert.pem", "ct_log_list.cnf", "openssl.cnf", "openssl.d")),
    *("pki/ca-trust", "pki/java"),
    *("group", "login.defs", "os-release", "passwd", "profile", "profile.d", "bash.bashrc", "inputrc", "shells"),
    *("gai.conf", "host.conf", "hosts", "nsswitch.conf", "protocols", "resolv.conf", "services"),
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d"),
    *("fonts", "gitconfig", "locale.alias", "localtime", "magic", "mime.types", "terminfo", "timezone"),
)
"""The files and folders in /etc that are visible: programs need them, and they hold no secrets.

The machine's keys are beside its certificates: in /etc/ssl/private, /etc/pki/tls/private and other folders.
"""
_CHECK_TIMEOUT: Final = 30.0


class Sandbox:
    """The sandboxes of a runner; ``paths`` are visible in each, read-only, besides the system's.

    What is below them is visible, too, except ``root``, the folder of the runner, or the folder ``DATA`` that it is in.
    """

    def __init__(self, paths: Sequence[str], checker_uid: int | None, root: Path | None = None) -> None:
        """``checker_uid``: the user as whom to check that sandboxes can be made; None: the runner's own."""
        self._paths = tuple(paths)
        self._checker_uid = checker_uid
        self._hidden = None
        if root is not None:
            self._hidden = next((each for each in root.absolute().parents if each.name == DATA), root).resolve()
        self._works: set[Network] = set()

    def check(self, network: Network) -> None:
        """Raise ``Unavailable`` if no sandbox can be made. What worked once is not tried again."""
        if network in self._works:
            return
        program = shutil.which(PROGRAM)
        if program is None:
            raise Unavailable(f"{PROGRAM} is not installed; install the package bubblewrap")
        command = [*self._namespaces(program, network), "--", "/usr/bin/env", "true"]
        if self._checker_uid is not None:
            python = [sys.executable, "-I", "-S", privileges.__file__]
            command = [*python, "exec", str(self._checker_uid), *command]
        try:
            result = subprocess.run(  # noqa: S603 - the program's own namespaces, with fixed arguments
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_CHECK_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(str(error)) from error
        if result.returncode:
            lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
            raise Unavailable(f"{lines[-1]}; allow user namespaces to the runner's agents, see user_namespaces(7)")
        self._works.add(network)

    def shows(self, path: str) -> bool:
        """Return whether a sandbox shows a program of the machine, and what it is a link to."""
        visible = (*_SYSTEM, *self._paths)
        prefixes = tuple(f"{folder}/" for folder in visible)
        real = os.path.realpath(path)
        is_hidden = self._hidden is not None and Path(real).is_relative_to(self._hidden)
        return not is_hidden and all(each.startswith(prefixes) for each in (path, real))

    def wrap(self, argv: Sequence[str], folder: TaskFolder, cwd: Path, network: Network) -> list[str]:
        """Return the command that runs ``argv`` in a sandbox with this task's files only."""
        own = [("--bind", folder.work), ("--bind", folder.home), ("--ro-bind", folder.prompt)]
        binds = [argument for option, path in own for argument in (option, str(path), str(path))]
        namespaces = self._namespaces(shutil.which(PROGRAM) or PROGRAM, network, str(folder.tmp))
        return [*namespaces, *binds, "--chdir", str(cwd), "--", *argv]

    def _namespaces(self, program: str, network: Network, tmp: str = "") -> list[str]:
        arguments = [program, "--unshare-pid", "--unshare-ipc", "--unshare-cgroup-try", "--die-with-parent"]
        arguments += ["--cap-drop", "ALL"]
        if network == "none":
            arguments.append("--unshare-net")
        for path in _SYSTEM:
            if os.path.islink(path):  # noqa: PTH114 - /bin is a link to usr/bin, and so on
                arguments += ["--symlink", os.readlink(path), path]  # noqa: PTH115 - as above
            else:
                arguments += self._bind(path)
        for path in (*(f"/etc/{name}" for name in _CONFIGURATION), *self._paths):
            arguments += self._bind(path)
        arguments += ["--proc", "/proc", "--dev", "/dev"]
        return [*arguments, *(["--bind", tmp, "/tmp"] if tmp else ["--tmpfs", "/tmp"])]  # noqa: S108 - the sandbox's own

    def _bind(self, path: str) -> list[str]:
        """Return the arguments that show a path, and an empty folder in place of what is hidden below it."""
        arguments, real = ["--ro-bind-try", path, path], Path(path).resolve()
        if self._hidden is None or not self._hidden.is_relative_to(real):
            return arguments
        if os.path.isdir(self._hidden):  # noqa: PTH112 - raises no error
            arguments += ["--tmpfs", str(Path(path) / self._hidden.relative_to(real))]
        return arguments
