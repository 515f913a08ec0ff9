"""The API as it is, in its own process; and, if asked for, a sampler on its stacks."""

from __future__ import annotations

import os

import uvloop

from benchmarks.harness import sampler
from taskherd.api.app import ApiProcess
from taskherd.observability import logs
from taskherd.settings import load


def main() -> None:
    """Run an API process until SIGTERM."""
    settings = load()
    logs.configure("warning", "json", secrets=settings.secrets)
    with sampler.sampling(os.environ.get("BENCH_SAMPLES", "")):
        uvloop.run(ApiProcess(settings).run())


if __name__ == "__main__":
    main()
