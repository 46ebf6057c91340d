"""Published specifications of TPU chips, and the lower bounds that they set on the time of a step.

Source: docs.cloud.google.com/tpu/docs, the pages of v5e, v5p and v6e, read on 2026-11-23 and 2026-11-25.
These pages give interconnect bandwidths for both directions together; a collective is limited by one
direction. Between slices, v5e has 2 x 100 Gbit/s per host of 8 chips, v5p 50 Gbit/s per chip, v6e 4 x 200
Gbit/s per host of 8 chips.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Specification of one chip."""

    flops: float
    """Peak of bfloat16 matrix products, FLOP/s."""
    multipliers: int
    """Multiplications per cycle of the matrix units: 4 (v5e) or 8 (v5p) of 128 x 128. Those of v6e are assumed to be 4
    of 256 x 256."""
    memory: float
    """Size of the HBM, bytes."""
    bandwidth: float
    """Bandwidth of the HBM, bytes/s."""
    interconnect: float
    """Bandwidth between chips of a slice over all links of a chip, bytes/s in one direction."""
    axes: int
    """Axes of the slice's torus. A chip has two links on each, with the same share of `interconnect`."""
    network: float
    """Bandwidth between slices, over the data centre's network, bytes/s in one direction."""

    @property
    def clock(self) -> float:
        """Cycles/s at which the matrix units reach the peak."""
        return self.flops / (2 * self.multipliers)


CHIPS = {
    "v5e": Chip(
        flops=197e12,
        multipliers=4 * 128**2,
        memory=16e9,
        bandwidth=819e9,
        interconnect=200e9,
        axes=2,
        network=3.125e9,
    ),
    "v5p": Chip(
        flops=459e12,
        multipliers=8 * 128**2,
        memory=95e9,
        bandwidth=2765e9,
        interconnect=600e9,
        axes=3,
        network=6.25e9,
    ),
    "v6e": Chip(
        flops=918e12,
        multipliers=4 * 256**2,
        memory=32e9,
        bandwidth=1638e9,
        interconnect=400e9,
        axes=2,
        network=12.5e9,
    ),
}


@dataclass(frozen=True)
class Roofline:
    """Lower bounds on the seconds of a step, by resource."""

    compute: float
    """Seconds of matrix products and convolutions."""
    memory: float
    """Seconds of HBM transfers."""
    interconnect: float
    """Seconds of transfers inside a slice."""
    network: float
    """Seconds of transfers between slices."""

    @property
    def bound(self) -> str:
        """The resource with the largest bound."""
        return max(("compute", "memory", "interconnect", "network"), key=lambda name: getattr(self, name))

    @property
    def utilisation(self) -> float:
        """Largest possible share of the peak FLOP/s, reached if all resources overlap perfectly."""
        return self.compute / getattr(self, self.bound)


def roofline(chip: Chip, flops: float, moved: float, inside: float, across: float = 0.0) -> Roofline:
    """The bounds of a step.

    Args:
        chip: specification of the chips.
        flops: FLOPs per chip.
        moved: bytes to and from HBM per chip.
        inside: bytes that a chip receives inside its slice over the busiest axis (`collectives.busiest_axis`).
        across: bytes that a chip receives from other slices.
    """
    interconnect = inside / (chip.interconnect / chip.axes)
    return Roofline(flops / chip.flops, moved / chip.bandwidth, interconnect, across / chip.network)
