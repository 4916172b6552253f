"""What results/gpu.py measures: heads, towers, what each kernel is worth, kernels, a prefill.

Axes: B views, H W pixels.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from clipdepth_plugin import DepthHead, HeadConfig, attach, ops
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.config import PRESETS
from clipdepth_plugin.latency.baselines import prefill_baseline
from clipdepth_plugin.latency.intervals import median_interval
from clipdepth_plugin.latency.rounds import Variant, run_rounds, timer_for
from tests.benchmarks.kernel_cases import (
    OPS,
    Case,
    head_case,
    largest_calls,
    op_cases,
    random_head,
    recorded,
)
from tests.benchmarks.kernels import Plan, measure

Row = dict[str, Any]
WORTH = 1.1
"""A kernel that gives less, as times of the same graph without it, is to be taken out."""
TINY: dict[str, Any] = {"width": 24, "film_hidden": 8, "channels": (16, 12, 8)}


@dataclass(frozen=True)
class Setting:
    """Where and how long; ``tiny``: a dry run on small heads and hosts, of no value."""

    device: torch.device
    rounds: int
    tiny: bool

    @property
    def heads(self) -> list[tuple[str, HeadConfig]]:
        """Preset -> config, those in use first."""
        if self.tiny:
            return [("fast", HeadConfig(preset="fast", **TINY))]
        first = ("fast", "spaceclip", "guided")
        return [(name, HeadConfig(width=768, preset=name)) for name in first if name in PRESETS]

    @property
    def graphs(self) -> bool:
        """Whether there are CUDA graphs."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and pixels, but for what is measured in several."""
        return torch.float32 if self.tiny else torch.bfloat16

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of a head's tokens."""
        return (3, 5) if self.tiny else (14, 14)


Cases = Iterator[functools.partial[list[Row]]]
"""What a part measures: each gives rows, and is begun while there is time."""


def heads(setting: Setting) -> Cases:
    """Every form of every head, checked: batch 1 and compiled first, then 16, then float32."""
    batches = [(1, not setting.tiny, setting.dtype), (16, False, setting.dtype)]
    for batch, compiled, dtype in (*batches, (1, False, torch.float32)):
        plan = Plan({}, setting.grid, (batch,), setting.rounds, compiled, (dtype,))
        for name, config in setting.heads:
            yield functools.partial(_head, setting, plan, name, config, batch)


def _head(setting: Setting, plan: Plan, name: str, config: HeadConfig, batch: int) -> list[Row]:
    head = random_head(config, setting.grid).to(setting.device)
    return _forms(measure(head_case(name, head, setting.grid, batch), plan, setting.device))


def _forms(case: Mapping[str, Any]) -> list[Row]:
    return [
        {
            "what": f"{case['name']}, {form['dtype']}",
            "form": form["form"],
            "ms": form.get("milliseconds"),
            "gain": form.get("speedup"),
            "error": form["error"],
            "note": form["reason"],
        }
        for form in case["forms"]
    ]


def kernels(setting: Setting) -> Cases:
    """Every kernel and its reference, alone, each in a graph, checked in two dtypes."""
    plan = Plan({}, setting.grid, (1,), setting.rounds, compiled=False)
    for name, config in setting.heads:
        head = random_head(config, setting.grid).to(setting.device)
        for case in op_cases(name, head, setting.grid):
            yield functools.partial(_kernel, case.name, name, case, plan, setting)


def _kernel(_: str, __: str, case: Case, plan: Plan, setting: Setting) -> list[Row]:
    return _forms(measure(case, plan, setting.device))


def worth(setting: Setting) -> Cases:
    """Every head's graph, beside the same with PyTorch in place of one kernel, and of all."""
    for name, config in setting.heads:
        yield functools.partial(_worth, setting, name, config)


def _worth(setting: Setting, name: str, config: HeadConfig) -> list[Row]:
    head = random_head(config, setting.grid).to(setting.device)
    case = head_case(name, head, setting.grid, 1)

    def without(*left_out: str) -> Callable[[], object]:
        patches = [
            mock.patch.object(ops, op, functools.partial(_plain, getattr(ops, op)))
            for op in left_out
        ]
        call = case.fused(setting.dtype)
        with torch.no_grad():
            for patch in patches:
                patch.start()
            try:
                return recorded(call) if setting.graphs else call
            finally:
                for patch in patches:
                    patch.stop()

    used = largest_calls(head, setting.grid, setting.dtype)
    calls = {"all kernels": without(), **{f"without {op}": without(op) for op in used}}
    calls["PyTorch alone"] = without(*OPS)
    times = _times(setting, {key: (call, nullcontext) for key, call in calls.items()})
    rows = []
    for key, seconds in times.items():
        gain = median_interval(seconds / times["all kernels"])
        little = key.startswith("without") and gain.median < WORTH
        note = f"the kernel gives less than {WORTH}: take it out" if little else ""
        rows.append(_row(f"{name}, batch 1", key, seconds, gain=str(gain), note=note))
    return rows


def _plain(op: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return op(*arguments, **{**options, "triton": False})


def towers(setting: Setting) -> Cases:
    """What depth adds to a tower: eager, in one graph with it, and compiled."""
    for compiled, batch in ((False, 1), (True, 1), (False, 16)):
        for host in ("vit-b-16",) if setting.tiny else ("vit-b-16", "so400m-14"):
            yield functools.partial(_tower, setting, host, batch, compiled)


# Else code compiled for the host alone is taken for its copy with hooks, and none of them runs.
@torch._dynamo.config.patch(skip_nnmodule_hook_guards=False)  # type: ignore[untyped-decorator]
def _tower(setting: Setting, name: str, batch: int, compiled: bool) -> list[Row]:
    host = _host(setting, name)
    pixels_B3HW = _pixels(setting, batch)
    what = f"{name}, batch {batch}, {'compiled' if compiled else 'eager'}"
    calls: dict[str, Any] = {"alone": (lambda: host(pixels_B3HW), nullcontext)}
    for preset in ("fast",) if setting.tiny or compiled else ("fast", "spaceclip"):
        for form, head in _head_forms(host, preset, setting).items():
            if compiled and form != "graph":
                continue
            tapped = copy.deepcopy(host) if compiled else host
            plugin = attach(tapped, head)
            if compiled:
                tapped.compile(dynamic=False)
            else:
                plugin.detach()
            around = nullcontext if compiled else functools.partial(_attached, plugin)
            read = functools.partial(_read, plugin, tapped, pixels_B3HW)
            calls[f"{preset}, {form}"] = (read, around)
            if form == "graph" and setting.graphs and not compiled:
                whole = plugin.graph()
                graphed = functools.partial(whole, pixels_B3HW)
                calls[f"{preset}, tower and head in one graph"] = (graphed, nullcontext)
    calls["alone, again"] = calls["alone"]
    if compiled:
        host.compile(dynamic=False)
    return _beside(what, setting, calls)


def _read(plugin: Any, host: Any, pixels_B3HW: torch.Tensor) -> object:
    host(pixels_B3HW)
    return plugin.depth


def prefill(setting: Setting) -> Cases:
    """What depth adds to a language model's pass over a picture and a prompt."""
    for name in ("llava-small",) if setting.tiny else ("llava-small", "paligemma-small"):
        yield functools.partial(_prefill, setting, name)


def _prefill(setting: Setting, name: str) -> list[Row]:
    host = _host(setting, name)
    pixels_B3HW = _pixels(setting, 1)
    run = prefill_baseline(host, pixels_B3HW).call
    calls: dict[str, Any] = {"alone": (run, nullcontext)}
    for form, head in _head_forms(host, "fast", setting).items():
        plugin = attach(host, head)
        plugin.detach()
        around = functools.partial(_attached, plugin)
        calls[f"fast, {form}"] = (functools.partial(_run_and_read, run, plugin), around)
    calls["alone, again"] = calls["alone"]
    return _beside(f"{name}, prefill", setting, calls)


def _run_and_read(run: Callable[[], object], plugin: Any) -> object:
    run()
    return plugin.depth


def _pixels(setting: Setting, batch: int) -> torch.Tensor:
    side = 32 if setting.tiny else 224
    return torch.randn(batch, 3, side, side, device=setting.device, dtype=setting.dtype)


def _host(setting: Setting, name: str) -> Any:
    torch.manual_seed(0)
    if setting.tiny:
        from tests.tiny.table import BY_NAME

        return BY_NAME["llava" if name == "llava-small" else "hf_clip_vision"].build().eval()
    return load_host(f"config:{name}").model.eval().to(setting.device, setting.dtype)


def _head_forms(host: Any, preset: str, setting: Setting) -> dict[str, Any]:
    head = DepthHead.for_host(host, preset).eval().to(setting.device, setting.dtype)
    forms: dict[str, Any] = {"plain": head, "plain-graph": head.fused(triton=False)}
    return {**forms, "fused": head.fused(graphs=0), "graph": head.fused()}


class _attached:  # noqa: N801 (a context, as nullcontext is)
    def __init__(self, plugin: Any) -> None:
        self.plugin = plugin

    def __enter__(self) -> None:
        self.plugin.attach()

    def __exit__(self, *error: object) -> None:
        self.plugin.detach()


def _times(setting: Setting, calls: Mapping[str, Any]) -> dict[str, Any]:
    variants = []
    for key, (call, around) in calls.items():
        context = around()
        before, after = context.__enter__, functools.partial(context.__exit__, None, None, None)
        variants.append(Variant(key, call, before, after))
    with torch.no_grad():
        for variant in variants:
            with variant.prepared() as call:
                for _ in range(3):  # graphs are recorded at the second
                    call()
        return run_rounds(variants, setting.rounds, timer_for(setting.device))


def _beside(what: str, setting: Setting, calls: Mapping[str, Any]) -> list[Row]:
    times = _times(setting, calls)
    rows = []
    for form, seconds in times.items():
        added = 1e3 * (seconds - times["alone"])
        share = 100 * (seconds / times["alone"] - 1)
        text = f"{median_interval(added)} ms, {median_interval(share)} %"
        rows.append(_row(what, form, seconds, added="" if form == "alone" else text))
    return rows


def _row(what: str, form: str, seconds: Any, **more: str) -> Row:
    return {"what": what, "form": form, "ms": str(median_interval(1e3 * seconds)), **more}


PARTS: dict[str, Callable[[Setting], Cases]] = {
    "heads": heads, "towers": towers, "worth": worth, "kernels": kernels, "prefill": prefill,
}  # fmt: skip
"""The most valuable first."""
