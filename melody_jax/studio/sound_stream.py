"""A sound that is being made, for any number of listeners."""

import threading
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32


class SoundStream:
    """The blocks of one sound: appended by one thread, read by others from the beginning at any pace.

    A reader has nothing but its position, so that one that is slow or goes away holds up nobody, and needs no
    unsubscribing: the blocks are freed with the last reference to the stream.
    """

    def __init__(self) -> None:
        self._blocks: list[Float32[np.ndarray, " n *C"]] = []
        self._ended = False
        self._changed = threading.Condition()

    def append(self, block: Float32[np.ndarray, " n *C"]) -> None:
        """Adds a block, which nobody may change from then on."""
        block.flags.writeable = False
        with self._changed:
            self._blocks.append(block)
            self._changed.notify_all()

    def end(self) -> None:
        """Ends the sound: readers end after its last block."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def samples(self) -> Float32[np.ndarray, " T *C"]:
        """All blocks so far as one array; empty without any."""
        with self._changed:
            blocks = list(self._blocks)
        return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)

    def read(self, heartbeat: float | None = None) -> Iterator[Float32[np.ndarray, " n *C"]]:
        """Yields the blocks from the first on, and waits for those that are not there yet.

        heartbeat: seconds after which a block of no samples is yielded if there is no other, so that the reader can
        look whether its own client has gone away; None: never.
        """
        position = 0
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda first=position: self._ended or len(self._blocks) > first, heartbeat
                )
                blocks = self._blocks[position:]
                ended = self._ended
            yield from blocks
            position += len(blocks)
            if ended:
                return
            if not blocks:
                yield np.zeros(0, np.float32)
