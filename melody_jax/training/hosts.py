"""Several processes that train together."""

import jax

from melody_jax.config import HostsConfig
from melody_jax.errors import UserError

HEARTBEAT = 30
"""Seconds of silence after which a process counts as gone; the others then end too, for a supervisor to restart all."""


def join_hosts(hosts: HostsConfig) -> None:
    """Joins the processes that train together; call it before anything touches a device.

    Raises:
        UserError: the others are not found, or do not answer.
    """
    if not hosts.join:
        return
    try:
        jax.distributed.initialize(
            hosts.coordinator or None,
            hosts.count or None,
            hosts.index if hosts.coordinator else None,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0][:200]
        raise UserError(f"--hosts.join: the other processes do not answer ({reason})") from None
