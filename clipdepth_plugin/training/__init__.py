"""Training depth heads on a frozen tower: data, losses, engine."""
