"""The README's table of what depth costs, from results/added_latency.json.

python -m tests.scripts.cost_table     # writes it
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from clipdepth_plugin.latency.schema import Audit
from tests.results_scripts import ROOT, load_script

README = ROOT / "README.md"
MEASURED = ROOT / "results" / "added_latency.json"
COMMAND = ".venv/bin/python -m tests.scripts.cost_table"
BEGIN, END = f"<!-- cost: written by {COMMAND} -->", "<!-- end of cost -->"
SHOWN = (
    ("CLIP ViT-B/16", "the tower"),
    ("SigLIP-So400m/14", "the tower"),
    ("CLIP ViT-L/14", "the tower"),
    ("LLaVA layout", "the prefill"),
    ("PaliGemma layout", "the prefill"),
)
"""First words of a row's host, and what depth is added to there."""


def read() -> list[Audit]:
    """The measured audits, in the order of the file."""
    return [Audit.model_validate(one) for one in json.loads(MEASURED.read_text("utf-8"))]


def build_table(audits: Sequence[Audit]) -> str:
    """The rows of ``SHOWN`` in the order of that, and a line on how they were measured."""
    head, rule, *rows = load_script("added_latency").summary(audits)
    shown = [
        next(row for row in rows if row.startswith(f"| {host}") and f"| {base}, " in row)
        for host, base in SHOWN
    ]
    seen = audits[0].environment
    note = (
        f"Batch 1, {seen.dtype}, {seen.threads} threads of {seen.cpu}, "
        f"torch {seen.versions['torch']}, {seen.created[:10]}."
    )
    return "\n".join([head, rule, *shown, "", note])


def region(readme: str) -> str:
    """The text between the README's two comments."""
    return readme.partition(BEGIN)[2].partition(END)[0].strip()


def main() -> int:
    """Writes the table into the README."""
    readme = README.read_text(encoding="utf-8")
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.stderr.write(f"no {BEGIN} and {END} in {README}\n")
        return 1
    README.write_text(f"{before}{begin}\n{build_table(read())}\n{end}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
