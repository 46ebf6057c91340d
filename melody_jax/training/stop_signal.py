"""When a run saves and stops: steps, the clock, SIGTERM, Ctrl-C."""

import signal
import threading
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from melody_jax.config import TrainConfig
from melody_jax.training.checkpoint import last_complete
from melody_jax.training.notes import print_note


class StopSignal:
    """Decides when to save and when to stop: after a number of steps, by the clock, on SIGTERM, or on Ctrl-C.

    Several processes must take the same decision at the same step. On SIGTERM to any of them, JAX's coordination
    service chooses the next step that all can still reach; Ctrl-C is passed on as SIGTERM. They compare their clocks
    every `log_every` steps, where they wait for the device anyway, and stop or save if any process wants to.

    After the first Ctrl-C the second one ends the process at once, by the system's default action.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._began: float | None = None
        self._saved = 0.0
        self._received = ""
        self._timer: threading.Timer | None = None
        self._multiprocess = jax.process_count() > 1
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            if not self._multiprocess:  # with several processes, JAX catches SIGTERM from the time they join
                self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminate)
            if (
                signal.getsignal(signal.SIGINT) is signal.default_int_handler
            ):  # not where the caller handles it
                self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)

    def _terminate(self, *_: Any) -> None:
        self._received = self._received or "SIGTERM"

    def _interrupt(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._received = self._received or "Ctrl-C"
        print_note(
            f"Ctrl-C: saving after the current step, then stopping; Ctrl-C again stops at once, and "
            f"{last_complete(self._config.workdir)}"
        )
        if self._multiprocess:
            signal.raise_signal(signal.SIGTERM)

    @property
    def reason(self) -> str:
        """The reason for stopping before the last step, valid once `check` has returned stop."""
        stop_minutes = self._config.stop_minutes
        return f"{self._received} received" if self._received else f"stop_minutes {stop_minutes:g} reached"

    def check(self, step: int) -> tuple[bool, bool]:
        """After `step` steps: whether to save, and whether to stop (after saving)."""
        config = self._config
        now = time.monotonic()
        if self._began is None:  # restoring does not count: a slice makes at least one step
            self._began = self._saved = now
        stop = 0 < 60 * config.stop_minutes < now - self._began
        save = 0 < 60 * config.save_minutes < now - self._saved
        received = bool(self._received)
        if self._multiprocess:
            votes = np.zeros((1, 2), bool)
            if step % config.log_every == 0:
                votes = np.asarray(multihost_utils.process_allgather(np.array([stop, save])))
            stop = bool(votes[:, 0].any())
            save = bool(votes[:, 1].any())
            received = multihost_utils.reached_preemption_sync_point(step)
            if received:
                self._terminate()
        if received:
            self._timer = threading.Timer(config.sigterm_seconds, self._warn_late)
            self._timer.daemon = True
            self._timer.start()
        save |= config.save_every > 0 and step % config.save_every == 0
        if save:
            self._saved = now
        return save or stop or received, stop or received

    def _warn_late(self) -> None:
        complete = last_complete(self._config.workdir)
        print_note(
            f"{self._received} came over {self._config.sigterm_seconds:g} s ago and the save is not done; "
            f"if killed now, {complete}: leave more time before SIGKILL, or use a faster disk"
        )

    def close(self) -> None:
        """Restores the previous handlers; call it once everything is saved."""
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
