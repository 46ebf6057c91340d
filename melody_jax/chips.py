"""Published figures of TPU chips, and how long a step must take on them at least.

Source: docs.cloud.google.com/tpu/docs, the pages of v5e, v5p and v6e, read 2026-11-23 and -25. Interconnect bandwidths
are given there for both directions together; a collective is limited by one of them. Between slices: v5e has 2 x 100
Gbit/s a host of 8 chips, v5p 50 Gbit/s a chip, v6e 4 x 200 Gbit/s a host of 8 chips.
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
    network: float
    """Between slices, over the data centre's network, bytes/s in one direction."""


CHIPS = {
    "v5e": Chip(flops=197e12, memory=16e9, bandwidth=819e9, interconnect=200e9, network=3.125e9),
    "v5p": Chip(flops=459e12, memory=95e9, bandwidth=2765e9, interconnect=600e9, network=6.25e9),
    "v6e": Chip(flops=918e12, memory=32e9, bandwidth=1638e9, interconnect=400e9, network=12.5e9),
}


@dataclass(frozen=True)
class Roofline:
    """Least seconds of a step, by what it needs."""

    compute: float
    memory: float
    interconnect: float
    network: float

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(("compute", "memory", "interconnect", "network"), key=lambda name: getattr(self, name))

    @property
    def utilisation(self) -> float:
        """Share of the peak FLOP/s that the step could reach at most if all of them overlap perfectly."""
        return self.compute / getattr(self, self.bound)


def roofline(chip: Chip, flops: float, moved: float, inside: float, across: float = 0.0) -> Roofline:
    """Of a step with so many FLOPs and bytes per chip: `moved` to and from HBM, got `inside` and `across` slices."""
    return Roofline(
        flops / chip.flops, moved / chip.bandwidth, inside / chip.interconnect, across / chip.network
    )
