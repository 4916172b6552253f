"""Who else used the machine's processors during a measurement: an idle machine is to be shown."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_STAT = Path("/proc/stat")


@dataclass(frozen=True, slots=True)
class OtherWork:
    """Counts from where it was started.

    Attributes:
        busy: Seconds that all processors had worked for anybody, since the machine's start.
        own: Seconds of them that this process took.
        total: Seconds of all processors, idle ones too.
    """

    busy: float
    own: float
    total: float

    @classmethod
    def start(cls) -> OtherWork | None:
        """Starts counting; None where the system does not tell (no Linux)."""
        try:
            first = _STAT.read_text(encoding="ascii").splitlines()[0]
            tick = os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, AttributeError, IndexError):
            return None
        # proc(5): user, nice, system, idle, iowait, irq, softirq, steal; guests are in user.
        fields = [int(field) / tick for field in first.split()[1:9]]
        times = os.times()
        total = sum(fields)
        return cls(total - fields[3] - fields[4], times.user + times.system, total)

    def percent(self) -> float | None:
        """% of all processor time since the start that was not this process's.

        That the hypervisor took for others (steal) is counted. None where no time has passed.
        """
        now = OtherWork.start()
        if now is None or now.total <= self.total:
            return None
        others = (now.busy - self.busy) - (now.own - self.own)
        return round(100 * max(others, 0.0) / (now.total - self.total), 2)


def with_other_work(call: Callable[[], T]) -> tuple[T, float | None]:
    """What a call gives, and ``OtherWork.percent`` of its time; None where that can't be read."""
    start = OtherWork.start()
    found = call()
    return found, None if start is None else start.percent()
