"""vLLM's entry point: attaches the heads when a worker has loaded its model.

vLLM calls ``register`` in every process that it starts, whether depth is asked for or not.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


def register() -> None:
    """Makes engines check their options, and workers attach the heads that these name.

    In a release of vLLM that has no such worker it does nothing: whoever asks for no depth there is
    not kept from starting, and ``generate_with_depth`` says that the engine has no head.
    """
    try:
        from vllm.v1.worker.worker_base import WorkerBase
    except ImportError as error:
        logger.warning("no depth can be read in this release of vLLM: %s", error)
        return
    _after(WorkerBase, "__init__", _on_worker)
    # Of the process that makes the engine's config; the others are given it.
    if (arguments := sys.modules.get("vllm.engine.arg_utils")) is not None:
        _after(arguments.EngineArgs, "create_engine_config", _on_config)


def _after(kind: type, name: str, call: Callable[[Any, Any], None]) -> None:
    """Has ``call(self, result)`` follow a method; once, however often a process registers."""
    plain = getattr(kind, name)
    if hasattr(plain, "clipdepth"):
        return

    @functools.wraps(plain)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = plain(self, *args, **kwargs)
        call(self, result)
        return result

    vars(method)["clipdepth"] = True
    setattr(kind, name, method)


def _on_config(_: Any, config: Any) -> None:
    from clipdepth_plugin.serving.options import options_of, refuse
    from clipdepth_plugin.serving.vllm import EXTENSION

    if options_of(config) is not None:
        refuse(config)
        parallel = config.parallel_config
        parallel.worker_extension_cls = parallel.worker_extension_cls or EXTENSION


def _on_worker(worker: Any, _: None) -> None:
    from clipdepth_plugin.errors import HostError
    from clipdepth_plugin.serving.options import options_of
    from clipdepth_plugin.serving.vllm import EXTENSION, DepthWorker

    if options_of(worker.vllm_config) is None:
        return
    if not issubclass(type(worker), DepthWorker):
        said = worker.vllm_config.parallel_config.worker_extension_cls
        raise HostError(
            f"a head is named, and worker_extension_cls is {said!r}: make it {EXTENSION}, or a "
            "subclass of that"
        )
    load = worker.load_model

    def load_model(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        worker.clipdepth_attach()
        return loaded

    worker.load_model = load_model
