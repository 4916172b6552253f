"""How hosts prepare pictures: one file a kind, with its view rule and its reader.

A new kind is a new file here that calls ``registry.register``; nothing else lists it.
"""
