"""``python -m benchmarks`` measures; ``python -m benchmarks profile`` says where the worker's CPU goes."""

from benchmarks.main import start

if __name__ == "__main__":
    start()
