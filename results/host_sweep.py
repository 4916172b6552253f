"""Attaches to every model of transformers that sees, proves the maps; writes host_sweep.md.

    python results/host_sweep.py             what host_sweep.json has not
    python results/host_sweep.py FOLDER ...  these, again
    python results/host_sweep.py --refused   those that did not work, again
    python results/host_sweep.py --again     all, again

Each folder of transformers/models runs in a child of its own with bounds on time and memory, so
that none ends the sweep. Models are tiny and random, made from their default configs; nothing is
downloaded. ``host_sweep_proof`` says what "works" means.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from host_sweep_hosts import candidates, default_on_meta, folders, of_the_tests, tiny
from host_sweep_proof import prove

from clipdepth_plugin import find_towers
from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.errors import ClipDepthError

if TYPE_CHECKING:
    from tests.tiny.case import HostCase
    from tests.tiny.packed_case import PackedCase

HERE = Path(__file__).resolve().parent
SECONDS, GIBIBYTES = 60, 8
VERDICTS = ("wrong", "works", "refused on reading", "not run", "not built", "refused")
"""Of a folder: the first of these that one of its towers has; refused is what all of them are."""
Row = dict[str, str]


def examine(folder: str) -> list[Row]:
    """What becomes of each model of a folder and each of its towers, until one works."""
    rows: list[Row] = []
    for kind in candidates(folder):
        found = list(_examine_one(kind))
        rows += [{"host": kind.__name__, **row} for row in found]
        if any(row["verdict"] in ("works", "wrong") for row in found):
            break
    if not rows:
        return [{"verdict": "refused", "host": "", "why": "no model that sees"}]
    if best(rows)["verdict"] in ("not run", "not built") and (case := of_the_tests(folder)):
        host = case.host()
        rows += [{"host": type(host).__name__, **row} for row in _proven(host, case)]
    return rows


def _examine_one(kind: Any) -> list[Row]:
    try:
        structure = default_on_meta(kind)
        if not find_towers(structure):
            return [_refused(structure)]
    except Exception:  # noqa: BLE001 - some models cannot be made without weights
        structure = None
    try:
        host = tiny(kind)
    except Exception as error:  # noqa: BLE001 - whatever a config makes of small numbers
        return [{"verdict": "not built", "why": f"{type(error).__name__}: {str(error)[:300]}"}]
    if not find_towers(host):
        if structure is not None:
            return [{"verdict": "not built", "why": "the tiny one lacks the default one's tower"}]
        return [_refused(host)]
    return list(_proven(host))


def _proven(host: torch.nn.Module, case: HostCase | PackedCase | None = None) -> Iterator[Row]:
    for tower in find_towers(host):
        about = {"tower": tower.path, "family": tower.family, "order": tower.rule.order}
        yield {**about, **vars(prove(host, tower, case))}


def _refused(host: torch.nn.Module) -> Row:
    try:
        choose_tower(host)
    except ClipDepthError as error:
        return {"verdict": "refused", "why": str(error)}
    raise AssertionError("find_towers finds none, choose_tower does")


def _child(folder: str, pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (GIBIBYTES << 30,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS,) * 2)
    os.nice(5)
    pipe.send(examine(folder))


def _bounded(folder: str) -> list[Row]:
    """``examine`` in a child, which may take so long and so much."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(folder, sender))
    child.start()
    sender.close()
    try:
        if receiver.poll(4 * SECONDS):
            return list(receiver.recv())
        why = f"took more than {4 * SECONDS} s"
    except EOFError:
        child.join()
        why = f"its process ended with exit code {child.exitcode}"
    finally:
        child.kill()
        child.join()
    return [{"verdict": "not run", "host": "", "why": why}]


def best(rows: list[Row]) -> Row:
    """The row that stands for a folder."""
    return min(rows, key=lambda row: VERDICTS.index(row["verdict"]))


def as_markdown(results: dict[str, Any]) -> str:
    """The page."""
    rows = {folder: best(found) for folder, found in results["folders"].items()}
    counts = Counter(row["verdict"] for row in rows.values())
    lines = [
        "# Every model of transformers that sees",
        "",
        f"Made by `python results/host_sweep.py` with transformers {results['transformers']},",
        f"torch {results['torch']}. Each model is built tiny and random from its default config.",
        "*Works*: the plug-in attached, a pass ran, and a change of each patch of a picture came",
        "out at that patch's place in every level of its map (`results/host_sweep_proof.py`).",
        "Refused models raise an error that says the same as here.",
        "",
        f"Of {len(rows)} folders: "
        + ", ".join(f"{counts[one]} {one}" for one in VERDICTS if counts[one])
        + ".",
        "",
        "## Works",
        "",
        "| folder | model | tower | family | shown by | token order |",
        "|---|---|---|---|---|---|",
    ]
    for folder, row in rows.items():
        if row["verdict"] == "works":
            cells = (row["host"], row["tower"] or "(itself)", row["family"], row["through"])
            lines.append(f"| {folder} | {' | '.join(cells)} | {row['order']} |")
    for verdict in VERDICTS:
        chosen = {folder: row for folder, row in rows.items() if row["verdict"] == verdict}
        if verdict == "works" or not chosen:
            continue
        lines += ["", f"## {verdict.capitalize()}", "", "| folder | model | why |", "|---|---|---|"]
        for folder, row in chosen.items():
            lines.append(f"| {folder} | {row['host']} | {_cell(row['why'])} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    text = text.partition("no patch embedding was found that feeds one. Found instead: ")[2] or text
    text = text.partition(" Give attach the model that holds")[0]
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def main(arguments: list[str]) -> int:
    """Sweeps; the number of wrong maps is the exit status."""
    stored, everything = HERE / "host_sweep.json", folders()
    done: dict[str, Any] = {}
    if stored.exists():
        done = json.loads(stored.read_text("utf-8"))["folders"]
    works = {folder for folder, rows in done.items() if best(rows)["verdict"] == "works"}
    chosen = {
        "--again": everything,
        "--refused": [folder for folder in everything if folder not in works],
        "": [folder for folder in everything if folder not in done],
    }
    option = next((one for one in arguments if one in chosen), "")
    for folder in [one for one in arguments if one != option] or chosen[option]:
        done[folder] = _bounded(folder)
        row = best(done[folder])
        sys.stderr.write(f"{folder}: {row['verdict']} {row['why'][-150:]}\n")
        results = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "folders": {one: done[one] for one in everything if one in done},
        }
        stored.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    results = json.loads(stored.read_text("utf-8"))
    (HERE / "host_sweep.md").write_text(as_markdown(results), "utf-8")
    return sum(best(rows)["verdict"] == "wrong" for rows in results["folders"].values())


if __name__ == "__main__":
    sys.path.append(str(HERE.parent))  # the tests' tiny hosts
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
