"""Distilling: a head for a host's tower from a teacher's labels: label, train, report."""
