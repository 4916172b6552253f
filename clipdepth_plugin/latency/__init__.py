"""How much time and memory depth adds to a host.

``audit.audit(make_subject(host), heads)`` measures; ``report`` and ``plot`` show the result.
"""
