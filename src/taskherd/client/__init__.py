"""A client of the HTTP API, for the command line: the standard library, and nothing of the server's inside."""
