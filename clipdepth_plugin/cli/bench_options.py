"""The options of ``clipdepth bench`` and what can be refused of them before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from clipdepth_plugin.config import PRESETS
from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.latency.intervals import MIN_ROUNDS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ScopeChoice = Literal["auto", "tower", "prefill"]


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """The options of the command, as its help describes them."""

    host: str
    heads: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    tower: str | None = None
    scope: ScopeChoice = "auto"
    batch: int = 1
    size: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    threads: int | None = None
    rounds: int = 20
    warmup: int = 2
    seed: int = 0
    separate: tuple[int, ...] = (224, 518)
    sweeps: tuple[str, ...] = ("batch=1,2,4",)
    sweep_rounds: int = 10
    text_tokens: int = 32
    random_weights: bool = False
    output: Path | None = None
    as_json: bool = False


def check_options(options: BenchOptions) -> None:
    """Refuses what no host could be measured with.

    Raises:
        BenchError: An option is not known, or too small, or two heads have one name.
    """
    _check_names(options)
    if options.dtype not in DTYPES:
        raise BenchError(f"dtype {options.dtype!r}: there are {', '.join(DTYPES)}")
    if options.scope not in get_args(ScopeChoice):
        raise BenchError(f"scope {options.scope!r}: there are {', '.join(get_args(ScopeChoice))}")
    unknown = [preset for preset in options.presets if preset not in PRESETS]
    if unknown:
        raise BenchError(f"preset {unknown[0]!r}: there are {', '.join(PRESETS)}")
    fewest = min(options.rounds, options.sweep_rounds if options.sweeps else options.rounds)
    if fewest < MIN_ROUNDS:
        raise BenchError(f"{fewest} rounds: a 95% interval of a median needs {MIN_ROUNDS} or more")
    if options.batch < 1:
        raise BenchError(f"batch {options.batch}: needs one picture or more")


def _check_names(options: BenchOptions) -> None:
    """Refuses heads that the report could not tell apart."""
    names = [*options.heads, *options.presets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is None:
        return
    if twice in options.heads and twice in options.presets:
        raise BenchError(
            f"--head {twice} and --preset {twice}: the report names heads by these, so they have "
            f"to differ; for a folder write --head ./{twice}"
        )
    option = "--head" if twice in options.heads else "--preset"
    raise BenchError(f"{option} {twice}: given twice; give it once")
