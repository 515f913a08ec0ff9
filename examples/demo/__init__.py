"""The demo (``make demo``): a dozen agents do real work on this machine, and the results are checked."""
