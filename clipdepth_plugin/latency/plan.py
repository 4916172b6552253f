"""What an audit times: the variants of a host, its heads in their forms, and what is beside them.

Hooks are put on and taken off between calls, untimed, so that one and the same host is timed with
and without them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.latency.bases import Base
from clipdepth_plugin.latency.forms import FORMS
from clipdepth_plugin.latency.rounds import Variant, nothing
from clipdepth_plugin.latency.schema import Scope, What
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin, attach


@dataclass(frozen=True, slots=True)
class Entry:
    """A variant, and what it is.

    Attributes:
        variant: What is timed; its name is the figure's.
        scope: Of what it is the time.
        what: Alone, control, hooks or depth.
        head: Name of the head, or None.
        form: Form of the head, or None.
    """

    variant: Variant
    scope: Scope
    what: What
    head: str | None = None
    form: str | None = None

    @property
    def stands_alone(self) -> bool:
        """Whether all of its time, and not a difference, is what it costs."""
        return self.scope in ("head", "separate")


class Switch:
    """A plug-in whose hooks are put on and off around single calls.

    ``attach`` and ``detach`` themselves would make torch.compile start over at each call.
    """

    def __init__(self, plugin: DepthPlugin) -> None:
        self.plugin = plugin
        plugin._taps.remove()

    def on(self) -> None:
        """Hooks on."""
        self.plugin._taps.install()

    def off(self) -> None:
        """Hooks off, and no tokens kept."""
        self.plugin._taps.remove()
        self.plugin._recorder.forget()


@contextlib.contextmanager
def switched(host: nn.Module, head: DepthHead, form: str, tower: str | None) -> Iterator[Switch]:
    """A head attached in one form, its hooks off; detached in the end."""
    formed = FORMS[form].make(head)
    plugin = attach(host, formed.head, tower=tower, **formed.options)
    try:
        yield Switch(plugin)
    finally:
        plugin.detach()


def host_entries(base: Base) -> list[Entry]:
    """A pass of the host without us, and its control."""
    return [
        Entry(Variant(f"{base.scope} alone", base.call), base.scope, "alone"),
        Entry(Variant(f"{base.scope} again", base.call), base.scope, "control"),
    ]


def hooked(base: Base, switch: Switch, head: str) -> Entry:
    """A pass of the host with a head's hooks on."""
    variant = Variant(f"{base.scope} + taps for {head}", base.call, switch.on, switch.off)
    return Entry(variant, base.scope, "hooks", head)


def with_depth(base: Base, switch: Switch, head: str, form: str) -> Entry:
    """A pass of the host, and its depth read."""

    def call() -> Tensor:
        base.call()
        return switch.plugin.depth

    variant = Variant(f"{base.scope} + {head}, {form}", call, switch.on, switch.off)
    return Entry(variant, base.scope, "depth", head, form)


def head_alone(switch: Switch, pixels_B3HW: Tensor, head: str, form: str) -> Entry:
    """A head on tokens that are there already, its map at the tower's input size."""
    features = switch.plugin.features(pixels_B3HW)
    size = (pixels_B3HW.shape[-2], pixels_B3HW.shape[-1])
    variant = Variant(f"head alone: {head}, {form}", lambda: switch.plugin.head(features, size))
    return Entry(variant, "head", "alone", head, form)


@contextlib.contextmanager
def plan(
    host: nn.Module,
    tower: str | None,
    pixels_B3HW: Tensor,
    bases: Sequence[Base],
    heads: Mapping[str, DepthHead],
    forms: Sequence[str],
    separate: Mapping[str, Callable[[], object]],
) -> Iterator[list[Entry]]:
    """All variants of an audit; the hooks are gone in the end.

    Args:
        host: What is tapped.
        tower: Which tower, where it has several.
        pixels_B3HW: (B, 3, H, W), as the tower takes them.
        bases: Passes that depth is added to.
        heads: Name -> head, in eval mode.
        forms: Names in ``FORMS``.
        separate: Name -> a pass of another network.
    """
    with contextlib.ExitStack() as stack:
        entries = [entry for base in bases for entry in host_entries(base)]
        # Taps cost the same whoever reads them: once, for the head that has the most.
        tapped = max(heads, key=lambda name: len(heads[name].config.levels), default=None)
        for name, head in heads.items():
            for form in forms:
                switch = stack.enter_context(switched(host, head, form, tower))
                for base in bases:
                    if (name, form) == (tapped, forms[0]):
                        entries.append(hooked(base, switch, name))
                    entries.append(with_depth(base, switch, name, form))
                entries.append(head_alone(switch, pixels_B3HW, name, form))
        for name, call in separate.items():
            entries.append(Entry(Variant(name, call, nothing, nothing), "separate", "alone"))
        yield entries
