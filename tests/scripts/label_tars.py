"""Labels WebDataset shards, some pictures of which are bad, and watches the memory.

    python label_tars.py FOLDER SHARDS PICTURES BAD

Prints JSON: how many were labelled and named as bad, seconds, and the most memory (MiB) of the
process after a fifth of the pictures and at the end.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from clipdepth_plugin.labelling.job import Progress
from clipdepth_plugin.labelling.run import write_labels
from tests.labelling.fake import job
from tests.labelling.test_label_pictures import write_tars


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    folder, shards, pictures, bad = Path(sys.argv[1]), *map(int, sys.argv[2:])
    tars = write_tars(
        folder / "tars", shards, pictures // shards, bad=range(3, pictures, pictures // bad)
    )
    early: list[float] = []

    def advance(progress: Progress) -> None:
        if not early and progress.done >= pictures // 5:
            early.append(peak_mib())

    one = job(tars, folder=folder / "out", bad_file_limit=bad, batch_size=8)
    report = write_labels(one, advance=advance)
    found = {
        "labelled": report.labelled,
        "bad": len(report.bad),
        "seconds": round(report.seconds, 1),
        "early": early[0],
        "end": peak_mib(),
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
