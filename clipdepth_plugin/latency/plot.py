"""The plot of an audit: what each variant adds."""

from __future__ import annotations

from pathlib import Path

from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.latency.schema import Audit

_COLOURS = {"separate": "tab:gray", "tower": "tab:orange"}


def write_plot(path: Path, audit: Audit) -> None:
    """Writes a PNG or SVG file, by its suffix; bars below the noise floor are hatched."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(6.5, 4.2), layout="constrained")
    axis = picture.subplots()
    shown = [figure for figure in audit.figures if figure.added and figure.scope != "head"]
    for row, figure in enumerate(shown):
        added = figure.added[0]
        value = added.milliseconds
        axis.barh(
            row,
            max(value.median, 0.0),
            color=_COLOURS.get(figure.scope, "tab:blue"),
            hatch=None if added.significant else "///",
            alpha=1.0 if added.significant else 0.3,
        )
        error = [[value.median - value.low], [value.high - value.median]]
        axis.errorbar(value.median, row, xerr=error, color="black", capsize=2)
    axis.set_yticks(range(len(shown)), [_plain(figure.name) for figure in shown], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("added ms (hatched: below the noise floor)")
    axis.set_title(_plain(f"{audit.host.label}, batch {audit.settings.batch}"), fontsize=9)
    kind = path.suffix.removeprefix(".")
    # Without a date and random ids, the same figures give the same file.
    metadata = {"Date": None} if kind == "svg" else {}
    with mpl.rc_context({"svg.hashsalt": "clipdepth"}):
        write_atomically(
            path, lambda file: picture.savefig(file, format=kind, dpi=150, metadata=metadata)
        )


def _plain(text: str) -> str:
    """Escapes dollar signs, between which matplotlib reads a formula."""
    return text.replace("$", r"\$")
