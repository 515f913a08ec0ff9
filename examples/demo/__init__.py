"""The demo (``make demo``): fourteen agents do real work on this machine, and the results are checked."""
