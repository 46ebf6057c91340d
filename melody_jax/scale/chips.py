"""Published figures of TPU chips, and how long a step must take on them at least.

Source: docs.cloud.google.com/tpu/docs, the pages of v5e, v5p and v6e, read 2026-11-23. Interconnect bandwidths are
given there for both directions together; a collective is limited by one of them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One chip."""

    flops: float
    """Matrix products in bfloat16, FLOP/s."""
    memory: float
    """HBM, bytes."""
    bandwidth: float
    """Of the HBM, bytes/s."""
    interconnect: float
    """Between chips of a slice, bytes/s in one direction."""


CHIPS = {
    "v5e": Chip(flops=197e12, memory=16e9, bandwidth=819e9, interconnect=200e9),
    "v5p": Chip(flops=459e12, memory=95e9, bandwidth=2765e9, interconnect=600e9),
    "v6e": Chip(flops=918e12, memory=32e9, bandwidth=1638e9, interconnect=400e9),
}


@dataclass(frozen=True)
class Roofline:
    """Least seconds of a step, by what it needs."""

    compute: float
    memory: float
    interconnect: float

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(("compute", "memory", "interconnect"), key=lambda name: getattr(self, name))

    @property
    def utilisation(self) -> float:
        """Share of the peak FLOP/s that the step could reach at most if all three overlap perfectly."""
        return self.compute / max(self.compute, self.memory, self.interconnect)


def roofline(chip: Chip, flops: float, bytes_moved: float, bytes_sent: float) -> Roofline:
    """Of a step with so many FLOPs, bytes to and from HBM, and bytes sent to other chips, all per chip."""
    return Roofline(flops / chip.flops, bytes_moved / chip.bandwidth, bytes_sent / chip.interconnect)
