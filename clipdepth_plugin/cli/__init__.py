"""The command ``clipdepth``. ``app.py`` lists its commands."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; without its libraries, says how to get them and exits with 2."""
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
    app()
