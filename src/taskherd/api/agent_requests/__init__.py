"""Routes for what agents ask people: a task's requests, the queue of all that are open, and the answer to one."""
