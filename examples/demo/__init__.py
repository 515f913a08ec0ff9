"""`taskherd demo`: real agents do real work on this machine, report it, and everything that must show is checked."""
