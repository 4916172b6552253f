"""The variants of an audit: a host alone and with depth, its heads alone, other networks.

Hooks are installed and removed between calls, untimed, so that the same host is timed with and
without them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.latency.forms import FORMS
from clipdepth_plugin.latency.rounds import Variant
from clipdepth_plugin.latency.schema import Scope, What
from clipdepth_plugin.latency.subject import Subject
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin, attach


@dataclass(frozen=True, slots=True)
class Entry:
    """A variant, whose name is the figure's, and its place in the report."""

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
    exported: Sequence[Entry] = (),
) -> Iterator[list[Entry]]:
    """All variants of an audit; every head is detached at the end."""
    entries = []
    for one in subject.baselines:
        entries.append(Entry(Variant(f"{one.scope} alone", one.call), one.scope, "alone"))
        entries.append(Entry(Variant(f"{one.scope} again", one.call), one.scope, "control"))
    # The taps' own cost is measured once, with the head that has the most of them.
    tapped = max(heads, key=lambda name: len(heads[name].config.levels), default=None)
    with contextlib.ExitStack() as stack:
        for name, head in heads.items():
            for form in forms:
                plugin = stack.enter_context(_attached(subject, head, form))
                for one in subject.baselines:
                    if (name, form) == (tapped, forms[0]):
                        taps = _beside(plugin, f"{one.scope} + taps for {name}", one.call)
                        entries.append(Entry(taps, one.scope, "hooks", name))
                    read = partial(_read_depth, plugin, one.call)
                    depth = _beside(plugin, f"{one.scope} + {name}, {form}", read)
                    entries.append(Entry(depth, one.scope, "depth", name, form))
                entries.append(_head_alone(plugin, subject, name, form))
        for name, call in separate.items():
            entries.append(Entry(Variant(name, call), "separate", "alone"))
        yield [*entries, *exported]


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


def _read_depth(plugin: DepthPlugin, host: Callable[[], object]) -> object:
    """A pass of the host, and the depth of each time that it ran its tower."""
    with plugin.capture() as seen:
        host()
    return [one.depths for one in seen] or plugin.depth


def _head_alone(plugin: DepthPlugin, subject: Subject, head: str, form: str) -> Entry:
    """A head on tokens that exist already, its maps at the tower's input size."""
    inputs = subject.inputs
    one = plugin.tower_pass(inputs.pixels, **inputs.arguments)
    batches = [(x, views.pixel_size) for x, views in zip(one.batches, one.views, strict=True)]

    def call() -> object:
        return [plugin.head(features, size) for features, size in batches]

    return Entry(Variant(f"head alone: {head}, {form}", call), "head", "alone", head, form)
