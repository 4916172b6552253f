"""Benchmark of heads on the demo tower: trains and measures entries, and makes heads.md.

    python results/heads.py --entry guided fast --seed 0 1 2   # one file in heads_runs/ for each
    python results/heads.py --entry spaceclip --size 112       # published heads on a CPU
    python results/heads.py --cost                             # heads_cost.json, on an idle machine
    python results/heads.py --page                             # heads.md and heads.png

CLIPDEPTH_DATA is the folder of the RGB-D sets. Runs that have a file are passed over; one that was
interrupted goes on. Further options are fields of configs/demo.yaml, as `clipdepth train` takes
them: `--optimiser.lr 1e-3`. heads_entries.py has the entries, heads_peers.py the peers' decoders,
heads_measure.py what is measured, heads_page.py the page.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from heads_entries import CONFIG, ENTRIES, FULLEST, make_config
from heads_measure import Run, measure, measure_cost
from heads_page import to_markdown, write_plot
from heads_peers import fit_ridge

from clipdepth_plugin import DepthHead
from clipdepth_plugin.data.config import expand
from clipdepth_plugin.environment import describe_environment
from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.latency.schema import Audit
from clipdepth_plugin.training.accelerator import with_precision
from clipdepth_plugin.training.engine import train
from clipdepth_plugin.training.session import open_session

HERE = Path(__file__).resolve().parent
logger = logging.getLogger("heads")


def main(arguments: Sequence[str], output: Path = HERE) -> None:
    """Does what the command line asks for; files are in ``output``."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --run is a field of the config
    )
    parser.add_argument("--entry", nargs="+", choices=list(ENTRIES), default=[])
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="side of the tower's input")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--rounds", type=int, default=20, help="of --cost")
    parser.add_argument("--page", action="store_true")
    options, overrides = parser.parse_known_args(arguments)
    if not (options.entry or options.cost or options.page):
        parser.error("give --entry, --cost or --page")
    torch.set_num_threads(options.threads)
    runs, cost = output / "heads_runs", output / "heads_cost.json"
    command = ("python", "results/heads.py", *arguments)
    for seed in options.seed:
        for name in options.entry:
            path = runs / f"{name}-{options.size}-seed{seed}.json"
            if path.exists():
                logger.info("%s: is there", path.name)
                continue
            run = run_entry(name, seed, options, overrides, command)
            runs.mkdir(exist_ok=True)
            write_atomically(path, f"{run.model_dump_json(indent=1)}\n".encode())
            errors = {
                data: round(one.head["none"]["abs_rel"] or 0, 3) for data, one in run.sets.items()
            }
            logger.info("%s: AbsRel %s", path.name, errors)
    if options.cost:
        found = measure_cost(options.size, options.rounds, command)
        cost.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    if options.page:
        make_page(output)


def run_entry(
    name: str,
    seed: int,
    options: argparse.Namespace,
    overrides: Sequence[str],
    command: tuple[str, ...],
) -> Run:
    """Trains an entry and measures it."""
    shared = {"seed": seed, "steps": options.steps, "batch": options.batch, "side": options.size}
    config = make_config(name, **shared, path=options.config, overrides=overrides)
    assert config.cache is not None
    if ENTRIES[name].shares_cache and not Path(expand(config.cache.folder)).exists():
        fullest = make_config(FULLEST, **shared, path=options.config)
        whole = {"head": fullest.head, "loss": fullest.loss}
        open_session(config.model_copy(update=whole))  # fills the cache for all that share it
    validation = None
    if ENTRIES[name].trained:
        result = train(config, resume=True)
        head, validation = DepthHead.from_pretrained(result.head), result.abs_rel
    else:
        head = fit_ridge(open_session(config))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = with_precision(config).precision
    return Run(
        entry=name,
        seed=seed,
        steps=options.steps,
        batch_size=options.batch,
        side=options.size,
        validation=validation,
        sets=measure(head, config.host),
        config=config.model_dump(mode="json"),
        environment=describe_environment(command, device, precision.replace("no", "float32")),
    )


def read_runs(folder: Path) -> list[Run]:
    """All run files."""
    paths = sorted(folder.glob("*.json"))
    return [Run.model_validate_json(path.read_text(encoding="utf-8")) for path in paths]


def read_cost(path: Path) -> Audit | None:
    """The cost, where it was measured."""
    return Audit.model_validate(json.loads(path.read_text("utf-8"))) if path.exists() else None


def make_page(output: Path) -> None:
    """Writes heads.md and, where the cost is known, heads.png."""
    runs, cost = read_runs(output / "heads_runs"), read_cost(output / "heads_cost.json")
    (output / "heads.md").write_text(to_markdown(runs, cost), encoding="utf-8")
    if cost is not None:
        write_plot(output / "heads.png", runs, cost)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(sys.argv[1:])
