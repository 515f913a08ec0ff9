"""The SBOM of the image: the packages of its lock file, as ``make sbom`` writes them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = "deploy/image/requirements.lock"
NOWHERE = "http://127.0.0.1:9"


def test_the_sbom_has_every_locked_package(tmp_path: Path) -> None:
    """Each with its version and a hash of the lock file; no network is needed."""
    for name in ("deploy/sbom.sh", LOCK, "pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    env = {"PATH": os.defpath, "http_proxy": NOWHERE, "https_proxy": NOWHERE}
    command = ["sh", str(tmp_path / "deploy" / "sbom.sh")]
    ended = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended

    lock = (ROOT / LOCK).read_text()
    locked = dict(re.findall(r"(?m)^([\w.-]+)==([^ ]+)", lock))
    assert {"sqlalchemy", "opentelemetry-sdk", "uvloop"} <= locked.keys()
    document = json.loads((tmp_path / "build" / "sbom.cdx.json").read_text())
    assert (document["bomFormat"], document["metadata"]["component"]["name"]) == ("CycloneDX", "taskherd")
    assert {each["name"]: each["version"] for each in document["components"]} == locked
    for component in document["components"]:
        references = component["externalReferences"]
        hashes = {each["content"] for reference in references for each in reference.get("hashes", ())}
        (start,) = re.finditer(rf"(?m)^{re.escape(component['name'])}==", lock)
        entry = re.split(r"\n(?! )", lock[start.start() :], maxsplit=1)[0]
        assert hashes == set(re.findall(r"sha256:(\w+)", entry)) != set(), component
    assert ended.stdout == f"build/sbom.cdx.json: {len(locked)} components\n"
