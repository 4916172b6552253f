"""Labels a folder of pictures by two Ray actors on this machine.

    python label_on_ray.py PICTURES FOLDER BAD_FILE_LIMIT

Prints JSON: how many were labelled, and the names of the bad ones.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ray

from clipdepth_plugin.labelling.on_ray import write_labels_on_ray
from tests.labelling.fake import fake_source, job


def main() -> None:
    pictures, folder, limit = sys.argv[1:]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    job_ = job(
        pictures, folder=Path(folder), source=fake_source, bad_file_limit=int(limit), threads=1
    )
    report = write_labels_on_ray(job_, actors=2)
    bad = sorted(Path(name).name for name in report.bad)
    sys.stdout.write(json.dumps({"labelled": report.labelled, "bad": bad}) + "\n")


if __name__ == "__main__":
    main()
