"""The runner: takes work requests off the queue, runs real agent processes, and reports what becomes of them."""
