"""The configuration of a training run: frozen dataclasses, each field with its unit, and the files that define them.

A config file is Python with `config() -> TrainConfig`; the command line overrides any field by its dotted name:
`melody train vae_tiny --steps 50 --data.batch-size 4 --stage.model.width 64`.
"""

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

from melody_jax.errors import UserError
from melody_jax.options import parse_options
from melody_jax.python_file import function_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, or Muon for the layers' matrices, with warm-up and cosine decay; vectors and scalars are not decayed."""

    muon: bool = False
    """Muon (Jordan 2024) for the kernels of layers: momentum, orthogonalised, its size matched to Adam's so that rates
    carry over (0.2 RMS, arXiv 2502.16982). Embeddings, heads and vectors have Adam, undecayed."""

    learning_rate: float = 5e-4
    """Peak learning rate, reached at the end of the warm-up."""
    warmup_steps: int = 200
    """Steps of linear warm-up from zero."""
    final_fraction: float = 0.05
    """The cosine ends at this fraction of the peak."""
    beta1: float = 0.9
    """Decay of the first moment, per step."""
    beta2: float = 0.99
    """Decay of the second moment, per step."""
    weight_decay: float = 0.01
    """Decoupled weight decay on leaves of two or more axes."""
    clip_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down."""
    discriminator_learning_rate: float = 2e-4
    """Peak learning rate of params["discriminator"], with its own moments, clip, and the same schedule shape."""
    discriminator_beta1: float = 0.8
    """First-moment decay of the discriminator (HiFi-GAN's value)."""
    rate_scales: tuple[tuple[str, float], ...] = ()
    """(path prefix, multiplier) pairs: leaves of `params` whose path ("model/text/...") starts so learn at a scaled
    rate; 0 freezes them, decay included."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685): small matrices learn beside kernels that stay as they are."""

    rank: int = 0
    """Inner width of an adapter, at most the kernel's smaller side; 0: none, all weights learn."""
    alpha: float = 16.0
    """What an adapter adds to its kernel is scaled by alpha / rank, so that learning rates hold for any rank."""
    kernels: str = r"blocks/(qkv|out|gate_up|down)/kernel|(own|cross)(_feed)?/\w+/kernel"
    """Regular expression found in the paths of the kernels that have one: attention and feed-forward, of LM and DPD."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f"lora.rank is {self.rank}; it must be at least 1, or 0 for no adapters")
        try:
            re.compile(self.kernels)
        except re.error as error:
            raise UserError(f"lora.kernels {self.kernels!r} is not a regular expression ({error})") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where batches come from. Fields that a stage's kind of batch does not use are ignored."""

    folder: tuple[str, ...] = ()
    """Folders of shards to train on: audio shards, or feature shards for the LM and DPD."""
    validation_folder: tuple[str, ...] = ()
    """Folders of held-out shards; empty: the last `holdout` of the records of `folder`, kept out of training."""
    holdout: float = 0.02
    """Fraction of the records (at least one) held out when there is no validation folder."""
    networks: str = ""
    """Folder of the released networks the features were made with, for the provenance check; empty: unchecked."""
    batch_size: int = 8
    """Items a step, over all devices."""
    crop_samples: int = 245_760
    """Length of an audio crop, samples at 24 kHz."""
    window_tokens: int = 256
    """Length of a feature window, semantic tokens at 25 Hz."""
    text_length: int = 48
    """Length captions are cut or padded to, word pieces."""
    text_tokenizer: str = ""
    """The tokenizer.json of a text tower with a vocabulary of its own (BERT, CLAP); empty: the packaged one."""
    hard_negative_group: int = 1
    """Consecutive items of a batch that share a genre (harder negatives for MuLan); 1: no grouping."""
    text_prefix_probability: float = 0.0
    """How often a feature window's prefix is made from a caption instead of from the audio, 0 to 1."""
    jitter_probability: float = 0.5
    """How often an audio prefix is one of its jittered variants instead of the clean one, 0 to 1."""
    seed: int = 0
    """Seed of the order, crops, captions and prefixes."""
    threads: int = 2
    """Threads that read and decode."""
    prefetch: int = 4
    """Batches kept ready."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """Which processes train together. All of them run the same command and see the same work folder."""

    join: bool = False
    """Joins the other processes before anything else. On Cloud TPU, GKE, Slurm and Open MPI they find each other."""
    coordinator: str = ""
    """Elsewhere: host:port of process 0."""
    count: int = 0
    """Elsewhere: how many processes there are."""
    index: int = -1
    """Elsewhere: which of them this is, from 0."""

    def __post_init__(self) -> None:
        said = (bool(self.coordinator), self.count > 0, self.index >= 0)
        if any(said) and not (self.join and all(said) and self.index < self.count):
            raise UserError(
                f"hosts: join {self.join}, coordinator {self.coordinator!r}, count {self.count}, index {self.index}: "
                "give join and none of the others, or all of them and an index below count"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What a run shows beside its losses."""

    preview_every: int = 0
    """Steps between previews: sound and spectrograms of held-out items; 0: none."""
    preview_items: int = 2
    """Items of the first held-out batch that are heard."""
    profile_first: int = 0
    """First step of a profile for `xprof` or Perfetto, written to <workdir>/profile; not the first of a start, which
    compiles."""
    profile_steps: int = 0
    """Steps in the profile; 0: none."""
    digests: bool = False
    """Adds to the metrics a digest of the batch and of each thing drawn for it, to prove that runs are paired; with
    `log_every` 1 of every single step."""
    peak_tflops: float = 0.0
    """What one device does at most, 1e12 FLOP/s, for the utilisation; 0: as published for TPUs, measured elsewhere."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. `stage` is a frozen dataclass of `melody_jax/training/stages/` (see training/stage.py)."""

    stage: Any
    """Which network, loss and kind of batch."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """Where batches come from."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """How parameters are updated."""
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)
    """Whether adapters learn in place of the weights."""
    steps: int = 1000
    """Optimiser steps in all."""
    accumulate: int = 1
    """Equal parts in which a batch is worked off, one after the other, before an update: what does not fit in memory at
    once. MuLan contrasts within each part."""
    seed: int = 0
    """Seed of initialisation and of every step's noise."""
    ema_decay: float = 0.999
    """Ceiling of the weight average's decay; the decay at step t is min(ema_decay, (1 + t) / (10 + t))."""
    log_every: int = 10
    """Steps between fetching and writing metrics."""
    eval_every: int = 200
    """Steps between evaluations on held-out batches; 0: only after the last step."""
    eval_batches: int = 8
    """Held-out batches an evaluation."""
    save_every: int = 1000
    """Steps between checkpoints; 0: by `save_minutes` alone. The last step is always saved."""
    save_minutes: float = 10.0
    """Wall minutes after which a checkpoint is written whatever the step; 0: by `save_every` alone."""
    stop_minutes: float = 0.0
    """Wall minutes after which this process saves and exits, to be resumed later; 0: runs to the end."""
    sigterm_seconds: float = 25.0
    """Seconds in which the save after SIGTERM should be done; past them a line says which checkpoint is good. (Slurm,
    Kubernetes and Google's spot machines kill 30 s after SIGTERM unless told otherwise.)"""
    keep_last: int = 2
    """Latest checkpoints kept."""
    keep_every: int = 0
    """Checkpoints at multiples of this many steps are kept for good; 0: none."""
    on_nonfinite: typing.Literal["stop", "skip", "rollback"] = "stop"
    """What follows a step whose loss or gradient is not finite, after its replay bundle is written: the run saves and
    ends; or it goes on without that batch; or it goes back to the last checkpoint and on with the data after it."""
    nonfinite_limit: int = 5
    """So often one process skips or rolls back; then it stops."""
    mesh: tuple[int, int, int] = (-1, 1, 1)
    """Devices on the axes (data, fsdp, tensor); one may be -1: what is left."""
    hosts: HostsConfig = dataclasses.field(default_factory=HostsConfig)
    """Training by several processes."""
    watch: WatchConfig = dataclasses.field(default_factory=WatchConfig)
    """Previews, profile, digests, utilisation."""
    workdir: str = "runs/default"
    """Folder of checkpoints, metrics.jsonl and config.json; training resumes if it holds a checkpoint."""
    init_from: str = ""
    """Where a fresh run's weights come from: a run folder (its average), a folder of released networks, or the name of
    a packaged release ("mini"); empty: random initialisation."""

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "log_every", "eval_batches", "keep_last"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.data.batch_size < 1:
            raise UserError(f"data.batch_size is {self.data.batch_size}; it must be at least 1")
        if self.data.batch_size % self.accumulate:
            raise UserError(
                f"data.batch_size {self.data.batch_size} does not divide into accumulate {self.accumulate}"
            )
        if self.watch.digests and self.accumulate > 1:
            raise UserError(
                f"watch.digests with accumulate {self.accumulate}: each part of a batch draws its own"
            )
        if self.lora.rank and not self.init_from:
            raise UserError(
                f"lora.rank is {self.lora.rank} without --init_from: adapters need weights to adapt"
            )
        if hasattr(self.stage, "teacher") and (self.lora.rank or not self.init_from):
            raise UserError(
                "distillation needs --init_from, a released teacher, and no adapters (lora.rank 0)"
            )
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay is {self.ema_decay}; it must be at least 0 and below 1")


def load_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """The `TrainConfig` that the file's `config()` returns, with `["--dotted.name", "value", ...]` applied.

    Raises:
        UserError: the file is unknown or not a config, a field is unknown, or a value does not fit its field.
    """
    function = function_of(path, "config")
    config = function()
    if not isinstance(config, TrainConfig):
        raise UserError(f"{path}: config() returned {type(config).__name__}; it must return a TrainConfig")
    summary = function.__globals__.get("__doc__") or ""
    return parse_options(config, overrides or [], f"melody train {path}", summary=summary)
