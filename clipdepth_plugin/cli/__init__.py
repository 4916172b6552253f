"""The command ``clipdepth``. ``app.py`` lists its commands."""

from __future__ import annotations

import sys

from clipdepth_plugin.cli import started  # noqa: F401 (first of all, for its time)


def main() -> None:
    """Runs the command line; without its libraries, says how to get them and exits with 2."""
    from clipdepth_plugin.cli.streams import flush_output, prepare_streams

    prepare_streams()
    try:
        from clipdepth_plugin.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.stderr.write(
            f"clipdepth: the command line needs the package {error.name}: "
            'pip install "clipdepth-plugin[cli]"\n'
        )
        raise SystemExit(2) from error
    try:
        app()
    finally:
        if not flush_output():
            raise SystemExit(3)
