"""Whether two audits of one host agree: what each says is added, interval against interval."""

from __future__ import annotations

from dataclasses import dataclass

from clipdepth_plugin.errors import BenchError
from clipdepth_plugin.latency.schema import Added, Audit, Range


@dataclass(frozen=True, slots=True)
class Pair:
    """One figure of both audits, in percent of its base.

    Attributes:
        name: The figure's.
        base: What it is added to, or a share of.
        first: As the first audit says.
        second: As the second says.
    """

    name: str
    base: str
    first: Range
    second: Range

    @property
    def agrees(self) -> bool:
        """Whether the intervals overlap."""
        return self.first.low <= self.second.high and self.second.low <= self.first.high


def compare_audits(first: Audit, second: Audit) -> list[Pair]:
    """Every figure that both audits have.

    Raises:
        BenchError: They are of different hosts, settings, devices or dtypes.
    """
    for what, one, other in (
        ("hosts", first.host.spec, second.host.spec),
        ("batches", first.settings.batch, second.settings.batch),
        ("sizes", first.settings.size, second.settings.size),
        ("devices", first.environment.device, second.environment.device),
        ("dtypes", first.environment.dtype, second.environment.dtype),
        ("threads", first.environment.threads, second.environment.threads),
    ):
        if one != other:
            raise BenchError(f"two audits of different {what} can't agree: {one} and {other}")
    seconds = _shares(second)
    return [
        Pair(name, base, added.percent, seconds[name, base].percent)
        for (name, base), added in _shares(first).items()
        if (name, base) in seconds
    ]


def _shares(audit: Audit) -> dict[tuple[str, str], Added]:
    return {(f.name, added.base): added for f in audit.figures for added in f.added}
