"""An agent that speaks ACP and counts: its only turn never ends, and tells a message every two seconds."""

import json
import sys
import time


def send(message: "dict[str, object]") -> None:
    """Write a message."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Open a session, then count."""
    for line in sys.stdin:
        request = json.loads(line)
        if request["method"] == "session/prompt":
            break
        result = {"initialize": {"protocolVersion": 1}, "session/new": {"sessionId": "s"}}[request["method"]]
        send({"id": request["id"], "result": result})
    number = 0
    while True:
        number += 1
        content = {"type": "text", "text": f"step {number}\n"}
        update = {"sessionUpdate": "agent_message_chunk", "messageId": str(number), "content": content}
        send({"method": "session/update", "params": {"sessionId": "s", "update": update}})
        time.sleep(2)


if __name__ == "__main__":
    main()
