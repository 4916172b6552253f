"""Triton's interpreter, made twice as fast for the scripts that run kernels in it."""

from __future__ import annotations

import dataclasses


def skip_overflow_checks() -> None:
    """Leaves out what the interpreter computes only to throw away.

    After each integer sum and product it repeats it in int64 and compares; the outcome is asserted
    in debug mode only, which the scripts do not use.
    """
    from triton.runtime.interpreter import interpreter_builder

    options = interpreter_builder.options
    if not options.debug:
        interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)
