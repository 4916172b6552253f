"""Scale, slope and confidence of a head from measured depths."""
