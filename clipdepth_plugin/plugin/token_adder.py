"""The hook that adds depth tokens to what a host's connector gives.

Axes: B views, n visual tokens of a view, R rows of the connector's output, W its width.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clipdepth_plugin.adapters.connector_rows import rows_of_views
from clipdepth_plugin.adapters.connectors import Connector
from clipdepth_plugin.adapters.hooks import Hook
from clipdepth_plugin.adapters.pass_recorder import runs_privately
from clipdepth_plugin.adapters.passes import TowerPass
from clipdepth_plugin.adapters.threads import changing
from clipdepth_plugin.errors import HostError, NoDepthError
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin
from clipdepth_plugin.plugin.pass_maps import PassMaps
from clipdepth_plugin.plugin.patch_tokens import patch_tokens
from clipdepth_plugin.precision import without_autocast

Said = Mapping[str, Any]
"""Arguments of ``patch_tokens`` that say the cameras of a pass."""


class _Replaces(Hook):
    """The one hook of ours that changes an output."""

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


class _Inside(threading.local):
    """What ``saying`` says in this thread, and how many passes have taken of it."""

    said: Sequence[Said] = ()
    taken = 0


class TokenAdder:
    """Adds a module's output to a host's visual tokens, until it is removed or collected."""

    def __init__(
        self,
        module: nn.Module,
        plugin: DepthPlugin,
        connector: Connector,
        said: Said,
        *,
        needs_camera: bool,
    ) -> None:
        self._module = weakref.ref(module)
        self._plugin = plugin
        self._connector = connector
        self._said = said
        self._needs_camera = needs_camera
        self._inside = _Inside()
        self._by_order = False
        self._done: weakref.WeakSet[TowerPass] = weakref.WeakSet()
        me = weakref.ref(self)

        def add(_: nn.Module, __: Any, output: Any) -> Any:
            adder = me()
            if adder is None:
                return None
            # Depth looks at data. Not a decorator, which would import the compiler for everyone.
            dynamo = sys.modules.get("torch._dynamo")
            return (adder if dynamo is None else dynamo.disable(adder))(output)

        add._torchdynamo_disable = True  # type: ignore[attr-defined]
        with changing():
            self._handle = connector.module.register_forward_hook(_Replaces(plugin.head, add))
        self._finalizer = weakref.finalize(self, self._handle.remove)

    def remove(self) -> None:
        """Takes the hook off."""
        with changing():
            self._finalizer()

    @contextmanager
    def saying(self, said: Sequence[Said]) -> Iterator[None]:
        """What is said of the passes inside, in this thread, in their order and again."""
        inside = self._inside
        before = inside.said, inside.taken
        self._by_order |= torch.is_grad_enabled()  # no backward pass runs the others again
        inside.said, inside.taken = said, 0
        try:
            yield
        finally:
            inside.said, inside.taken = before

    def __call__(self, output: Any) -> Any:
        """The connector's output with depth; None, which leaves it, in runs of the tower alone."""
        module = self._module()
        if module is None or runs_privately():
            return None
        if not isinstance(output, Tensor):
            raise HostError(
                f"the connector {self._connector.path} gave a {type(output).__name__}, expected a "
                "tensor of visual tokens"
            )
        one, said = self._next_pass()
        with torch.inference_mode(False):
            rows = rows_of_views(one, self._connector, output.shape[:-1])
            merge = self._connector.merge or 1
            tokens = patch_tokens(one, merge, **said, needs_camera=self._needs_camera)
        with without_autocast(next(module.parameters()).device):
            parts = [module(tokens_Bn5) for tokens_Bn5 in tokens]
        added_RW = _placed(parts, rows, output.shape)
        # 0.0 - 0.0 is 0.0, and x - 0.0 is x for every x, -0.0 too; x + 0.0 would not be.
        return output - (0.0 - added_RW.to(output))

    def _next_pass(self) -> tuple[PassMaps, Said]:
        """The pass whose tokens the connector was given, and what is said of its cameras."""
        plugin, inside = self._plugin, self._inside
        if not plugin.attached:
            raise NoDepthError(
                "the plug-in that depth tokens read is detached: detach them, too, or attach it"
            )
        one = plugin._pass()
        again = torch._C._current_graph_task_id() != -1  # gradient checkpointing, in the backward
        if again and self._by_order:
            raise HostError(
                "gradient checkpointing runs the connector again in the backward, out of the "
                "cameras' order: say one camera for all (attach(intrinsics=...)), or turn "
                "checkpointing off around the tower"
            )
        if one in self._done and not again:
            raise NoDepthError(
                f"the connector {self._connector.path} ran again without its tower: of which "
                "pictures its tokens are is not known. Let the host run its tower each time, or "
                "detach the depth tokens"
            )
        self._done.add(one)
        if not inside.said or again:
            return one, self._said
        said = inside.said[inside.taken % len(inside.said)]
        inside.taken += 1
        return one, said


def _placed(parts: Sequence[Tensor], rows: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """What is added, in the shape of the connector's output: zero where no view has a token."""
    added_NW = torch.cat([part.flatten(0, 1) for part in parts])
    rows_N = torch.cat([rows_Bn.flatten() for rows_Bn in rows])
    if not torch.equal(rows_N, torch.arange(shape[:-1].numel())):
        placed_RW = added_NW.new_zeros(shape[:-1].numel(), shape[-1])
        added_NW = placed_RW.index_copy(0, rows_N.to(added_NW.device), added_NW)
    return added_NW.view(shape)
