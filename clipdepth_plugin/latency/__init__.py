"""How much time and memory depth adds to a host, measured so that it can be trusted."""
