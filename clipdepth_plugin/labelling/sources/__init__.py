"""One file for each kind of depth source; importing this package registers them all.

A new kind is a new file here: a function that opens such sources, with ``@register_source`` above
it. ``labelling.checked.CheckedSource`` batches its pictures and checks what it gives.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
