"""A tower as a plain module of one layout: what graphs and engines are made of.

It runs the tower's own forward on a copy that shares the weights; stand-ins for the ``forward`` of
tapped modules put what passes by on a tape. The host keeps neither hook nor stand-in.

Axes: B views, D width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Self

from torch import Tensor, nn

from clipdepth_plugin.adapters.folding import folding
from clipdepth_plugin.adapters.hooks import in_graph
from clipdepth_plugin.adapters.kept import keep
from clipdepth_plugin.adapters.layout_rules import TowerCall
from clipdepth_plugin.adapters.layouts import GatheredLayout, PlainLayout, TokenLayout
from clipdepth_plugin.adapters.pass_recorder import PassRecorder
from clipdepth_plugin.adapters.passes import TowerPass
from clipdepth_plugin.adapters.running import TowerRunner, as_tower_takes
from clipdepth_plugin.adapters.sharing import SharedCopy
from clipdepth_plugin.adapters.taps import Taps
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.adapters.traits import PooledTap, parameters_of, required_by
from clipdepth_plugin.adapters.trim import states_read
from clipdepth_plugin.adapters.wanted import wanted_by
from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.errors import HostError, ImageError
from clipdepth_plugin.features import Views


class _Tape(threading.local):
    """What passes by in the forward that runs in this thread; a copied tape is empty."""

    run: TowerPass | None = None
    states: dict[int, Tensor] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Tape, ()


class _Tapped:
    """Stands in for a module's ``forward``: shows its first argument and what it gives."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.__wrapped__ = forward  # where signatures are looked up
        self.before: list[Callable[[Any], None]] = []
        self.after: list[Callable[[Any], None]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.before:
            given = _first_tensor((*args, *kwargs.values()))
            for take in self.before:
                take(given)
        out = self.__wrapped__(*args, **kwargs)
        for take in self.after:
            take(out)
        return out


class StaticTower(nn.Module):
    """A tower, and what a head reads of it, for inputs of one shape.

    Attributes:
        tower: The tower, as the copy has it.
        input_shape: Shape of the pixels that it was made with.
        layout: How the tokens of the one size of view lie in the blocks' outputs.
        dynamic_batch: Whether it takes any number of pictures, not just as many.
    """

    def __init__(
        self,
        host: nn.Module,
        tower: Tower,
        head: HeadConfig,
        example: Tensor,
        tower_kwargs: Mapping[str, Any],
    ) -> None:
        """Runs the tower once on an example, to see how it lays tokens out.

        Args:
            host: The host; it is only looked at.
            tower: Its tower.
            head: What is read of it.
            example: Pixels of the one shape.
            tower_kwargs: What the tower is given beside them: constants.

        Raises:
            HostError: The weights are offloaded, the tower needs more beside pixels, or views are
                of several sizes.
            NoDepthError: A tap did not fire, or tokens are not laid out as expected.
        """
        super().__init__()
        if any(x.is_meta for x in tower.module.parameters()):
            raise HostError(f"weights of {tower} are offloaded (meta): load all of the tower")
        pixels = [name for name in parameters_of(tower.module)[:1] if name in tower.rule.reads]
        if pixels:
            raise HostError(
                f"{tower} reads off its {pixels[0]} where each patch belongs: its tokens have no "
                "layout that a graph of constants could know"
            )
        missing = [name for name in required_by(tower.module)[1:] if name not in tower_kwargs]
        if missing:
            raise HostError(
                f"{tower} takes {', '.join(missing)} beside pixels: give what it is for your "
                f"pictures' sizes, which becomes a constant: DepthTower(..., {missing[0]}=...)"
            )
        shared = SharedCopy(host)
        self.vision = shared.of(tower.module)
        self.tower = _as_copied(tower, shared)
        self.input_shape = tuple(example.shape)
        self._given = dict(tower_kwargs)
        self._wanted = wanted_by(head, self.tower, pixels=head.reads_pixels)
        self.layout = self._layout_of(host, example)
        if len(self.layout.views) > 1:
            sizes = ", ".join(f"{h} x {w}" for h, w in (v.pixel_size for v in self.layout.views))
            raise HostError(f"a DepthTower has views of one size; these are of several: {sizes}")
        views = self.layout.views[0]
        self.dynamic_batch = isinstance(self.layout, PlainLayout) and views.count == len(example)
        read = states_read(host, tower)
        self._states = None if isinstance(read, str) else read
        self._move_constants()
        self._tape = _Tape()
        self._tap()

    @property
    def views(self) -> Views:
        """The views of the example."""
        return self.layout.views[0]

    def forward(self, pixel_values: Tensor) -> tuple[dict[str, Tensor], TowerPass]:
        """What the host reads of its tower, by name, and what the head reads."""
        self._check_shape(pixel_values)
        layout = self.layout
        if self.dynamic_batch and isinstance(layout, PlainLayout):
            layout = layout.of_batch(pixel_values.shape[0])
        run = TowerPass(self._wanted, TowerCall({}, tuple(pixel_values.shape), ()), False)
        run.lay_out(layout)
        tape = self._tape
        tape.run, tape.states = run, {}
        try:
            pixels = as_tower_takes(pixel_values, self.tower)
            with folding(self._given.values()):
                out = self.vision(pixels, **self._given)
            states = tape.states
        finally:
            tape.run, tape.states = None, None
        if self._states is None:
            return dict(_named(out)), run
        return {f"hidden_states.{k}": states[k] for k in self._states}, run

    def _check_shape(self, pixel_values: Tensor) -> None:
        shape, made = tuple(pixel_values.shape), self.input_shape
        start = 1 if self.dynamic_batch else 0
        empty = not in_graph() and shape[0] == 0
        if empty or len(shape) != len(made) or shape[start:] != made[start:]:
            expected = ", ".join(map(str, ("1 or more", *made[1:]) if start else made))
            raise ImageError(
                f"pixel_values has shape {shape}; this DepthTower was made for ({expected}): make "
                "another for other pictures, with example=..."
            )

    def _layout_of(self, host: nn.Module, example: Tensor) -> TokenLayout:
        recorder = PassRecorder(self._wanted, TowerPass)
        taps = Taps(host, self.tower, recorder, owner=self)
        run = TowerRunner(self.tower, taps, recorder).run(example, self._given)
        run.batches  # noqa: B018 (raises where they can't be read)
        return run.layout

    def _tap(self) -> None:
        tower, tape, states = self.tower, self._tape, self._states or ()
        tapped: dict[nn.Module, _Tapped] = {}

        def tap(module: nn.Module) -> _Tapped:
            if module not in tapped:
                vars(module)["forward"] = tapped[module] = _Tapped(module.forward)
            return tapped[module]

        tap(tower.patch_embed).before.append(partial(_take_pixels, tape))
        for level in sorted({*self._wanted.levels, *states}):
            take = partial(_take_level, tape, level, level in self._wanted.levels)
            if level == 0:
                tap(tower.blocks[0]).before.append(take)
            else:
                tap(tower.blocks[level - 1]).after.append(take)
        if self._wanted.context == "pooled" and tower.pooled is not None:
            tap(tower.pooled.module).after.append(partial(_take_pooled, tape, tower.pooled))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._move_constants()
        return self

    def _move_constants(self) -> None:
        """To where the tower is, so that no forward has to."""
        device = next(self.vision.parameters()).device
        if isinstance(self.layout, GatheredLayout):
            self.layout.to(device)
        for name, value in self._given.items():
            if isinstance(value, Tensor):
                self._given[name] = value.to(device)


def _as_copied(tower: Tower, shared: SharedCopy) -> Tower:
    pooled = tower.pooled
    return replace(
        tower,
        module=shared[tower.module],
        blocks=tuple(shared[block] for block in tower.blocks),
        patch_embed=shared[tower.patch_embed],
        pooled=None if pooled is None else PooledTap(shared[pooled.module], pooled.take),
    )


def _take_pixels(tape: _Tape, pixels: Any) -> None:
    if tape.run is not None:
        tape.run.take_pixels(pixels)


def _take_level(tape: _Tape, level: int, wanted: bool, out: Any) -> None:
    x = _first_tensor(out)
    if tape.run is None or tape.states is None or x is None:
        return
    tape.states[level] = x
    if wanted:
        tape.run.levels.setdefault(level, keep(x, tape.run.compiles))


def _take_pooled(tape: _Tape, tap: PooledTap, out: Any) -> None:
    if tape.run is not None:
        tape.run.take_pooled(tap.take(out))


def _first_tensor(values: Any) -> Tensor | None:
    if isinstance(values, Tensor):
        return values
    tensors = (one for one in values if isinstance(one, Tensor))
    return next(tensors, None)


def _named(out: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of an output, however nested, by the names that lead to them."""
    if isinstance(out, Tensor):
        yield name or "output", out
    elif isinstance(out, Mapping | list | tuple):
        items = out.items() if isinstance(out, Mapping) else enumerate(out)
        for key, value in items:
            yield from _named(value, f"{name}.{key}" if name else str(key))
