"""Labelling: depth for pictures that have none, from a teacher, written as an RGB-D folder."""
