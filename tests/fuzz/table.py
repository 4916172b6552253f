"""Every fuzz."""

from __future__ import annotations

from tests.fuzz import calls, configs, heads, pictures

FUZZES = (*pictures.FUZZES, *heads.FUZZES, *configs.FUZZES, *calls.FUZZES)
