"""The command line: it parses, calls, and shows; whatever happens, happens below."""
