"""The unchanged worker in its own process, with a meter of its metrics.

If ``BENCH_SAMPLES`` names a file, its stacks are sampled too.
"""

from __future__ import annotations

import os

from benchmarks.harness import meter, sampler
from taskherd.observability import logs
from taskherd.settings import load
from taskherd.worker.app import Worker, run


def main() -> None:
    """Run a worker until SIGTERM."""
    settings = load()
    logs.configure("warning", "json", secrets=settings.secrets)
    worker = Worker(settings)
    metrics = worker.metrics

    def read() -> tuple[int, int, int]:
        samples = (sample for family in metrics.reports.collect() for sample in family.samples)
        published = next(iter(metrics.events_published.collect())).samples[0].value
        batches = next(iter(metrics.batch_size.collect())).samples
        count = next(sample.value for sample in batches if sample.name.endswith("_count"))
        return int(sum(sample.value for sample in samples)), int(published), int(count)

    meter.watch(read)
    with sampler.sampling(os.environ.get("BENCH_SAMPLES", "")):
        run(worker)


if __name__ == "__main__":
    main()
