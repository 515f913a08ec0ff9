"""``python -m benchmarks`` measures; ``profile`` says where the worker's CPU goes, ``sustained`` takes an hour."""

from benchmarks.main import start

if __name__ == "__main__":
    start()
