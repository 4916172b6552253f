"""For added_latency.py alone; to be deleted with its last use."""

FORMER_UNTIL = "2026-11-26T19"
