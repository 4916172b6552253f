"""The variants of an audit: a host alone and with depth, its heads alone, other networks.

Hooks are installed and removed between calls, untimed, so that the same host is timed with and
without them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.latency.baselines import Baseline
from clipdepth_plugin.latency.forms import FORMS
from clipdepth_plugin.latency.rounds import Variant
from clipdepth_plugin.latency.schema import Scope, What
from clipdepth_plugin.latency.subject import Subject
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin, attach


@dataclass(frozen=True, slots=True)
class Entry:
    """A variant, and its place in the report.

    Attributes:
        variant: What is timed; its name is the figure's.
        scope: What is timed, as in the report.
        what: Alone, control, hooks or depth.
        head: Name of the head, or None.
        form: Form of the head, or None.
    """

    variant: Variant
    scope: Scope
    what: What
    head: str | None = None
    form: str | None = None


@contextlib.contextmanager
def audit_entries(
    subject: Subject,
    heads: Mapping[str, DepthHead],
    forms: Sequence[str],
    separate: Mapping[str, Callable[[], object]],
) -> Iterator[list[Entry]]:
    """All variants of an audit; every head is detached at the end.

    Args:
        subject: The host.
        heads: Name -> head, in eval mode.
        forms: Names in ``FORMS``.
        separate: Name -> a pass of another network.
    """
    with contextlib.ExitStack() as stack:
        entries = [entry for one in subject.baselines for entry in _host(one)]
        # The taps' own cost is measured once, with the head that has the most of them.
        tapped = max(heads, key=lambda name: len(heads[name].config.levels), default=None)
        for name, head in heads.items():
            for form in forms:
                plugin = stack.enter_context(_attached(subject, head, form))
                for one in subject.baselines:
                    if (name, form) == (tapped, forms[0]):
                        entries.append(_hooked(one, plugin, name))
                    entries.append(_with_depth(one, plugin, name, form))
                entries.append(_head_alone(plugin, subject.pixels_B3HW, name, form))
        entries += [
            Entry(Variant(name, call), "separate", "alone") for name, call in separate.items()
        ]
        yield entries


@contextlib.contextmanager
def _attached(subject: Subject, head: DepthHead, form: str) -> Iterator[DepthPlugin]:
    """A head attached in one form, its hooks off; detached at the end."""
    plugin = attach(subject.model, FORMS[form].make(head), tower=subject.tower.path or None)
    try:
        _hooks_off(plugin)
        yield plugin
    finally:
        plugin.detach()


def _hooks_off(plugin: DepthPlugin) -> None:
    plugin._taps.remove()
    plugin._recorder.forget()


def _beside(plugin: DepthPlugin, name: str, call: Callable[[], object]) -> Variant:
    """A call of the host with the plug-in's hooks on."""
    # Not attach() and detach(), which reset torch.compile each time.
    return Variant(name, call, plugin._taps.install, partial(_hooks_off, plugin))


def _host(baseline: Baseline) -> list[Entry]:
    """A pass of the host alone, and its control."""
    scope = baseline.scope
    return [
        Entry(Variant(f"{scope} alone", baseline.call), scope, "alone"),
        Entry(Variant(f"{scope} again", baseline.call), scope, "control"),
    ]


def _hooked(baseline: Baseline, plugin: DepthPlugin, head: str) -> Entry:
    """A pass of the host with a head's hooks, its depth not read."""
    variant = _beside(plugin, f"{baseline.scope} + taps for {head}", baseline.call)
    return Entry(variant, baseline.scope, "hooks", head)


def _with_depth(baseline: Baseline, plugin: DepthPlugin, head: str, form: str) -> Entry:
    """A pass of the host, and its depth read."""

    def call() -> Tensor:
        baseline.call()
        return plugin.depth

    variant = _beside(plugin, f"{baseline.scope} + {head}, {form}", call)
    return Entry(variant, baseline.scope, "depth", head, form)


def _head_alone(plugin: DepthPlugin, pixels_B3HW: Tensor, head: str, form: str) -> Entry:
    """A head on tokens that exist already, its map at the tower's input size."""
    features = plugin.features(pixels_B3HW)
    size = (pixels_B3HW.shape[-2], pixels_B3HW.shape[-1])
    variant = Variant(f"head alone: {head}, {form}", lambda: plugin.head(features, size))
    return Entry(variant, "head", "alone", head, form)
