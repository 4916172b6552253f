"""Measures what depth adds to six hosts on this machine: about 9 minutes on two cores.

    python results/added_latency.py            # added_latency.md and added_latency.json

Run it with everything else on the machine stopped. Hosts and heads have random weights; nothing is
downloaded. Each host is one interleaved run, and nothing is compared across hosts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.adapters.loading.config import BUILT_IN
from clipdepth_plugin.config import Preset
from clipdepth_plugin.latency.audit import Method, audit
from clipdepth_plugin.latency.baselines import separate_passes
from clipdepth_plugin.latency.report import HEADER, describe, markdown_table, rows, share
from clipdepth_plugin.latency.resources import keep_freed_memory
from clipdepth_plugin.latency.schema import Audit
from clipdepth_plugin.latency.subject import make_subject, random_heads

HERE = Path(__file__).resolve().parent
PRESETS: tuple[Preset, ...] = ("spaceclip", "fast", "guided")
SIZES = (224, 518)
INTRODUCTION = """\
# Added latency

Made by `python results/added_latency.py`. Hosts and heads have random weights. Each host is one
interleaved run: medians of paired differences in % of the baseline's time, with their bootstrap 95%
interval; of a separate network the whole time. Effects below the noise floor are reported as such.
The language models of the two multimodal layouts have 0.2 to 0.3 G parameters: depth's share of
their prefill is larger than beside a model of 7 G."""


def measure(host: str, method: Method, command: Sequence[str]) -> Audit:
    """Audits one built-in host, batch 1, float32, eager."""
    loaded = load_host(f"config:{host}")
    subject = make_subject(loaded.model, label=loaded.label)
    heads = random_heads(subject, PRESETS)
    separate = separate_passes(SIZES, subject.inputs.pixels)
    return audit(subject, heads, separate=separate, method=method, command=command)


def summary(audits: Sequence[Audit]) -> list[str]:
    """A row for each baseline of each host."""
    separate = [figure.name for figure in audits[0].figures if figure.scope == "separate"]
    cells = []
    for one in audits:
        for scope in one.noise_percent:
            alone = one.figure(f"{scope} alone")
            names = [*(f"{scope} + {preset}, eager" for preset in PRESETS), *separate]
            found = [added for name in names for added in one.figure(name).added]
            shares = [share(added) for added in found if added.baseline == scope]
            cells.append((one.host.label, f"the {scope}, {alone.p50_ms:.0f} ms", *shares))
    header = ("host", "depth added to", *(f"`{preset}`" for preset in PRESETS), *separate)
    return markdown_table(header, cells)


def to_markdown(audits: Sequence[Audit]) -> str:
    """The whole file."""
    lines = [INTRODUCTION, "", *summary(audits)]
    for one in audits:
        lines += ["", f"## {one.host.label}", "", *(f"- {line}" for line in one.verdict)]
        lines += ["", *markdown_table(HEADER, rows(one))]
        lines += ["", f"{one.settings.rounds} rounds. {describe(one.environment)}"]
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str]) -> None:
    """Measures, and writes both files when all hosts are done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", nargs="+", default=list(BUILT_IN), choices=list(BUILT_IN))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args(arguments)
    keep_freed_memory()
    command = ("python", "results/added_latency.py", *arguments)
    method = Method(rounds=options.rounds, warmup=1)
    audits = [measure(host, method, command) for host in options.hosts]
    text = json.dumps([one.model_dump() for one in audits], indent=1)
    (options.output / "added_latency.json").write_text(text + "\n", encoding="utf-8")
    (options.output / "added_latency.md").write_text(to_markdown(audits), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
