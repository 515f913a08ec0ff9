"""Run ``python -m benchmarks``; ``--help`` lists the cases."""

from benchmarks.main import start

if __name__ == "__main__":
    start()
