"""One file for each data format; importing this package registers them all.

A new format is a new file here: a class that takes a ``DataConfig``, derived from
``SampleDataset`` or ``StreamDataset``, with ``@register_format`` above it.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
