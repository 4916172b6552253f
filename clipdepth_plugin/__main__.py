"""``python -m clipdepth_plugin``: the command line, as ``clipdepth`` runs it."""

from clipdepth_plugin.cli import main

if __name__ == "__main__":
    main()
