"""Dead letters over HTTP: what is in the queue, and replaying it."""
