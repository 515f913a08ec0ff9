"""Query the health of the process in this container: ``python -m taskherd.observability.health [--ready]``.

It exits with 0 if the process is healthy, else with 1. It is a container's health check, which runs every few seconds,
and imports only the standard library.
"""

from __future__ import annotations

import http.client
import os
import sys

DEFAULT_PORT = 9590
FETCH_TIMEOUT = 3.0
"""Seconds to wait for the answer of the operations port."""


def request(port: int, path: str) -> tuple[bool, str]:
    """Return whether ``path`` on a local operations port answers with 200, and the response or an error message."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=FETCH_TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status == http.HTTPStatus.OK, response.read(4096).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return False, f"no answer on port {port}: {error}"
    finally:
        connection.close()


def main(arguments: list[str]) -> int:
    """Return 0 if the process is alive (with ``--ready``: ready), else 1. Print the response."""
    port = int(os.environ.get("TASKHERD_OPS_PORT") or DEFAULT_PORT)
    is_healthy, response = request(port, "/readyz" if "--ready" in arguments else "/livez")
    sys.stdout.write(response + "\n")
    return 0 if is_healthy else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
