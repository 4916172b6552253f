"""``make fuzz``: every fuzz in turn, with seeds from 1 on, until the time is up.

python -m tests.fuzz --minutes 10 --seed 1
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time

from tests.fuzz.table import FUZZES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1, help="the first; a failure names its own")
    parser.add_argument("--only", default="", help="the fuzzes that have this in their name")
    options = parser.parse_args()
    chosen = [fuzz for fuzz in FUZZES if options.only in fuzz.name]
    end = time.monotonic() + 60 * options.minutes
    for seed in itertools.count(options.seed):
        for fuzz in chosen:
            sys.stderr.write(f"seed {seed}, {fuzz.name}\n")
            fuzz.run(seed, fuzz.examples)
            if time.monotonic() > end:
                sys.exit(0)


if __name__ == "__main__":
    main()
