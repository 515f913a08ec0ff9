"""Ask this container's process whether it is well: `python -m taskherd.observability.health [--ready]`, exit 0 or 1.

Made for a container's health check, which runs every few seconds: it imports nothing but the standard library.
"""

from __future__ import annotations

import http.client
import os
import sys

DEFAULT_PORT = 9590
TIMEOUT = 3.0


def request(port: int, path: str) -> tuple[bool, str]:
    """Return whether `path` on the operations port of this machine answers 200, and the answer or what went wrong."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status == http.HTTPStatus.OK, response.read(4096).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return False, f"no answer on port {port}: {error}"
    finally:
        connection.close()


def main(words: list[str]) -> int:
    """Return 0 when the process is alive, or ready with `--ready`; else 1. Says on stdout what was answered."""
    port = int(os.environ.get("TASKHERD_OPS_PORT") or DEFAULT_PORT)
    well, said = request(port, "/readyz" if "--ready" in words else "/livez")
    sys.stdout.write(said + "\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
