"""How much one client may ask for: token buckets per address, and the number of requests at the same time."""

import ipaddress
import math
from collections import Counter, OrderedDict
from dataclasses import dataclass

from melody_jax.options import check_fields, option

MAX_CLIENTS = 4096
"""Addresses that are remembered; the one that was seen least recently is forgotten first."""


@dataclass(frozen=True, kw_only=True)
class ClientLimits:
    """What one address may ask for. What is beyond gets 429 with the seconds after which to retry."""

    requests_per_second: float = option(50.0, above=0, most=1e6)
    """Requests of all kinds, on average over 20 seconds."""
    changes_per_minute: float = option(120.0, above=0, most=1e6)
    """Requests that change something, such as a new job."""
    uploads_per_minute: float = option(30.0, above=0, most=1e6)
    """Uploaded sounds."""
    open_requests: int = option(64, least=1, most=10_000)
    """Requests at the same time, event streams and sounds included."""

    def __post_init__(self) -> None:
        check_fields(self)


class TokenBuckets:
    """A bucket of tokens per client, which fills at a constant rate. For one thread."""

    def __init__(self, per_second: float, capacity: float) -> None:
        self.per_second = per_second
        self.capacity = max(1.0, capacity)
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> (tokens, time)

    def take(self, client: str, now: float) -> int:
        """Takes a token: 0, or the whole seconds after which there is one.

        now: seconds of a clock that never goes back.
        """
        level = self._level(client, now)
        enough = level >= 1.0
        self._levels[client] = (level - enough, now)
        self._levels.move_to_end(client)
        if len(self._levels) > MAX_CLIENTS:
            self._levels.popitem(last=False)
        return 0 if enough else max(1, math.ceil((1.0 - level) / self.per_second))

    def wait(self, client: str, now: float) -> int:
        """As `take`, without taking the token."""
        level = self._level(client, now)
        return 0 if level >= 1.0 else max(1, math.ceil((1.0 - level) / self.per_second))

    def _level(self, client: str, now: float) -> float:
        level, before = self._levels.get(client, (self.capacity, now))
        return min(self.capacity, level + (now - before) * self.per_second)


class OpenRequests:
    """Counts the requests of each client that are being answered."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._counts: Counter[str] = Counter()

    def enter(self, client: str) -> bool:
        """Counts one more request; False, without counting, if there are as many as may be."""
        if self._counts[client] >= self.most:
            return False
        self._counts[client] += 1
        return True

    def leave(self, client: str) -> None:
        """A counted request has been answered."""
        self._counts[client] -= 1
        if not self._counts[client]:
            del self._counts[client]


def client_name(address: str) -> str:
    """Whose limits count for an address: itself, of IPv6 its network of 64 bits, which one client has to itself."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
