"""The task routes: Coder's Tasks API, and taskherd's extensions."""
