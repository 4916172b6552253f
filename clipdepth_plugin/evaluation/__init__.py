"""Metrics, protocols, reports, and the probe that ranks a tower's levels."""
