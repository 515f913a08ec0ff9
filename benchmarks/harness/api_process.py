"""The unchanged API in its own process, with a sampler of its stacks if ``BENCH_SAMPLES`` names a file."""

from __future__ import annotations

import os

from benchmarks.harness import sampler
from taskherd.api.app import ApiProcess, run
from taskherd.observability import logs
from taskherd.settings import load


def main() -> None:
    """Run an API process until SIGTERM."""
    settings = load()
    logs.configure("warning", "json", secrets=settings.secrets)
    with sampler.sampling(os.environ.get("BENCH_SAMPLES", "")):
        run(ApiProcess(settings))


if __name__ == "__main__":
    main()
