"""Annotates a LeRobot data set by two Ray actors on this machine; runs where LeRobot is.

    python annotate_on_ray.py DATASET FOLDER

Prints JSON: how many pictures were labelled, and the episodes that are missing.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import ray

ROOT = Path(__file__).resolve().parents[2]
# A package that LeRobot needs has one of that name; actors are sent what is of ours.
importlib.import_module("tests").__path__ = [str(ROOT / "tests")]
annotating: Any = importlib.import_module("tests.lerobot.annotating")
_by_value: Any = ray.cloudpickle.register_pickle_by_value
for _name in ("tests.labelling.fake", "tests.lerobot.sets", "tests.lerobot.annotating"):
    _by_value(importlib.import_module(_name))


def main() -> None:
    from clipdepth_plugin.annotating.run import annotate_on_ray

    dataset, folder = sys.argv[1:]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    report, joined = annotate_on_ray(annotating.job(dataset, Path(folder)), actors=2)
    said = {"labelled": report.labelled, "missing": joined.missing}
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
