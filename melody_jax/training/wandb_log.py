"""Weights & Biases, optional: the numbers and previews that TensorBoard gets, as a run on a server or offline.

`watch.wandb_project` turns it on. `<workdir>/wandb_run.json` has the id of the run, so that a resumed training
continues the same one. WANDB_MODE, WANDB_ENTITY and the other variables of the library apply.
"""

import importlib
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from melody_jax import files
from melody_jax.config import TrainConfig
from melody_jax.config_json import to_dict
from melody_jax.errors import UserError, first_line
from melody_jax.training.notes import print_note

RUN_FILE = "wandb_run.json"
FINISH_SECONDS = 60.0
"""Longest wait for the last data to be sent; what was not sent remains in the work folder."""


class WandbLog:
    """Sends metrics to Weights & Biases; a context that ends the run. Without a project it does nothing.

    Of several processes only the first one sends. The run starts with the first metrics. If the service fails, a note
    says so once, and nothing more is sent.

    Raises:
        ModuleNotFoundError: a project is given, but the package is not installed.
    """

    def __init__(self, config: TrainConfig, workdir: Path) -> None:
        self._config = config
        self._workdir = workdir
        self._run: Any = None
        self._is_active = config.watch.wandb_project != "" and jax.process_index() == 0
        if self._is_active:
            self._wandb: Any = importlib.import_module("wandb")

    def __enter__(self) -> "WandbLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self._run is not None:
            self._attempt(lambda: self._run.finish(exit_code=int(kind is not None)))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of a step."""
        self._attempt(lambda: self._started().log({"step": step, **metrics}))

    def show(self, step: int, previews: Mapping[str, tuple[np.ndarray, int, np.ndarray]]) -> None:
        """Sends players and spectrograms, as `MetricLog.show` takes them."""
        self._attempt(lambda: self._started().log({"step": step, **self._media(previews)}))

    def _media(self, previews: Mapping[str, tuple[np.ndarray, int, np.ndarray]]) -> dict[str, Any]:
        media = {}
        for name, (audio, sample_rate, image) in previews.items():
            media[f"{name}/audio"] = self._wandb.Audio(audio, sample_rate=sample_rate)
            media[f"{name}/spectrogram"] = self._wandb.Image((image * 255).astype(np.uint8))
        return media

    def _started(self) -> Any:
        """The run; it is started, or continued, the first time."""
        if self._run is None:
            self._run = self._wandb.init(
                project=self._config.watch.wandb_project,
                id=_run_id(self._workdir / RUN_FILE),
                resume="allow",
                name=self._workdir.name,
                dir=str(self._workdir),
                config=to_dict(self._config),
                settings=self._wandb.Settings(
                    silent=True, console="off", finish_timeout=FINISH_SECONDS, finish_timeout_raises=True
                ),
            )
            self._run.define_metric("*", step_metric="step")  # W&B's steps cannot be repeated, ours can
        return self._run

    def _attempt(self, action: Callable[[], object]) -> None:
        """Carries out an action, unless one has failed before."""
        if not self._is_active:
            return
        try:
            action()
        except UserError:
            raise
        except Exception as error:  # the library raises many types, and none of them may end a training
            self._is_active = False
            print_note(
                f"warning: Weights & Biases gets no more data of this process ({first_line(error)}); training continues"
            )


def _run_id(path: Path) -> str:
    """The id in a file, which is written first if it does not exist. Raises `UserError` if it is damaged."""
    if not path.exists():
        files.write_json(path, {"id": secrets.token_hex(4)})
    content = files.read_json(path)
    run_id = content.get("id") if isinstance(content, dict) else None
    if not isinstance(run_id, str):
        raise UserError(f"{path}: not the id of a run of Weights & Biases; delete it to begin a new run")
    return run_id
