"""Several processes that train together."""

import contextlib
import itertools
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import NoReturn

import jax
from orbax.checkpoint import multihost

from melody_jax.config import HostsConfig
from melody_jax.errors import UserError, first_line
from melody_jax.runtime import check_devices

SILENCE = 30.0
"""Seconds without a sign of life after which a process counts as lost. JAX waits for 100 s, then aborts them all."""
INTERVAL = 3.0
"""Seconds between two signs of life."""
FOLDER = "melody_jax/alive"
"""Where the signs of life stand in the store of JAX's coordination service: a count for each process."""
FINISHED = "finished"
"""The last sign of life of a process that has trained to its end."""


@contextlib.contextmanager
def joined(hosts: HostsConfig) -> Iterator[None]:
    """Joins the processes that train together; enter it before anything touches a device.

    Inside, a process that is lost ends the others, each with one line and exit code 1.

    Raises:
        UserError: the others are not found, or do not answer; there is no device of the kind that was asked for.
    """
    if hosts.join:
        _join(hosts)
    check_devices()
    if jax.process_count() == 1:
        yield
        return
    heartbeat = Heartbeat()
    heartbeat.start()
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        _end(f"a computation shared with the others failed ({first_line(error)})")
    else:
        heartbeat.finish()
    finally:
        heartbeat.stop()


def _join(hosts: HostsConfig) -> None:
    try:
        jax.distributed.initialize(
            hosts.coordinator or None,
            hosts.count or None,
            hosts.index if hosts.coordinator else None,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--hosts.join: the other processes do not answer ({first_line(error)})") from None


class Heartbeat(threading.Thread):
    """Gives signs of life for this process, and ends it once another one has given none for `SILENCE` seconds.

    On some networks a computation waits for a lost process forever. JAX notices too, but aborts with a stack trace.
    """

    def __init__(self) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._stopping = threading.Event()
        self._index = jax.process_index()
        self._store = multihost.get_jax_distributed_client()

    def run(self) -> None:
        """Writes and reads signs of life until `stop`.

        Silence is counted in this thread's own rounds, not by the clock: all processes may have been suspended.
        """
        last: dict[str, str] = {}
        silent_rounds: Counter[str] = Counter()
        for count in itertools.count():
            if self._stopping.wait(INTERVAL * (count > 0)):
                return
            try:
                self._write(str(count))
                signs = dict(self._store.key_value_dir_get(FOLDER))
            except jax.errors.JaxRuntimeError:
                continue  # process 0 holds the store; without it JAX ends this process
            for key, sign in signs.items():
                is_silent = sign != FINISHED and last.get(key) == sign
                silent_rounds[key] = silent_rounds[key] + 1 if is_silent else 0
                last[key] = sign
                if silent_rounds[key] * INTERVAL >= SILENCE and not self._stopping.is_set():
                    _end(f"process {key.rpartition('/')[2]} has given no sign of life for {SILENCE:.0f} s")

    def finish(self) -> None:
        """Tells the others that this process has trained to its end, and need give no more signs."""
        self.stop()
        self._write(FINISHED)

    def stop(self) -> None:
        """Gives no more signs of life; the others end after `SILENCE`, unless this process has finished."""
        self._stopping.set()
        self.join(INTERVAL)

    def _write(self, sign: str) -> None:
        self._store.key_value_set(f"{FOLDER}/{self._index}", sign, allow_overwrite=True)


def _end(reason: str) -> NoReturn:
    """Ends this process from any thread. Leaving JAX's service in good order would wait for the lost one."""
    print(
        f"error: process {jax.process_index()} of {jax.process_count()}: {reason}; if another process has ended, start "
        "all of them again with the same command, and they resume from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
