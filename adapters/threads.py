"""What other threads do with a host while hooks come and go: its passes go on as they are."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from torch import nn

from clipdepth_plugin.adapters.forwards import call_code

_CHANGING = threading.RLock()


@contextlib.contextmanager
def changing() -> Iterator[None]:
    """Held while a host's hooks are checked and changed: by one thread at a time, and no compiler.

    What compiles a host now reads its hooks: it is waited for. Its lock is taken first, so that
    code that attaches while it compiles does not wait for one that waits for it.
    """
    dynamo = sys.modules.get("torch._dynamo.convert_frame")
    compiling = contextlib.nullcontext() if dynamo is None else dynamo.compile_lock
    with compiling, _CHANGING:
        yield


def threads_inside(module: nn.Module) -> set[int]:
    """The threads, by their ``get_ident``, that run a module's call now."""
    inside, call = set(), call_code(module)
    for thread, innermost in sys._current_frames().items():
        frame: FrameType | None = innermost
        while frame is not None:
            if frame.f_code is call and frame.f_locals.get("self") is module:
                inside.add(thread)
                break
            frame = frame.f_back
    return inside
