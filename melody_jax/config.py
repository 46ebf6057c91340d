"""The configuration of a training run: frozen dataclasses, each field with its unit, and the files that define them.

A config file is Python with `config() -> TrainConfig`; the command line overrides any field by its dotted name:
`melody train vae_tiny --steps 50 --data.batch-size 4 --stage.model.width 64`.
"""

import dataclasses
import re
import sys
import typing
from pathlib import Path
from typing import Any

from melody_jax.errors import UserError
from melody_jax.options import check_fields, option, parse_options
from melody_jax.python_file import docstring, function_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, or Muon for the matrices of layers, with warm-up and cosine decay; vectors and scalars are not decayed."""

    muon: bool = False
    """Updates the kernels of layers with Muon (Jordan 2024): orthogonalised momentum, scaled to the size of Adam's
    updates (0.2 RMS, arXiv 2502.16982) so that learning rates carry over. Embeddings, heads and vectors use Adam
    without decay."""

    learning_rate: float = option(5e-4, least=0)
    """Peak learning rate, reached at the end of the warm-up."""
    warmup_steps: int = option(200, least=0)
    """Steps of linear warm-up from zero."""
    final_fraction: float = option(0.05, least=0, most=1)
    """The cosine ends at this fraction of the peak."""
    beta1: float = option(0.9, least=0, most=0.99999)
    """Decay of the first moment, per step."""
    beta2: float = option(0.99, least=0, most=0.99999)
    """Decay of the second moment, per step."""
    weight_decay: float = option(0.01, least=0)
    """Decoupled weight decay on leaves of two or more axes."""
    clip_norm: float = option(1.0, above=0)
    """Global gradient norm above which gradients are scaled down."""
    discriminator_learning_rate: float = option(2e-4, least=0)
    """Peak learning rate of params["discriminator"], whose moments and clipping are separate; same schedule shape."""
    discriminator_beta1: float = option(0.8, least=0, most=0.99999)
    """First-moment decay of the discriminator (HiFi-GAN's value)."""
    rate_scales: tuple[tuple[str, float], ...] = ()
    """(path prefix, multiplier) pairs: the learning rate of leaves of `params` whose path ("model/text/...") has the
    prefix is multiplied; 0 freezes them and turns off their decay."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters (LoRA, arXiv 2106.09685): small trained matrices that are added to frozen kernels."""

    rank: int = 0
    """Inner width of an adapter, at most the smaller side of its kernel; 0: no adapters, all weights are trained."""
    alpha: float = 16.0
    """An adapter's output is scaled by alpha / rank, so that one learning rate suits every rank."""
    kernels: str = ""
    """Regular expression that selects, by path, the matrices that get an adapter; empty: all projections of attention
    and feed-forward layers."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f"lora.rank is {self.rank}; it must be at least 1, or 0 for no adapters")
        try:
            re.compile(self.kernels)
        except re.error as error:
            raise UserError(f"lora.kernels {self.kernels!r} is not a regular expression ({error})") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where batches come from. Fields that do not apply to a stage's kind of batch are ignored."""

    folder: tuple[str, ...] = ()
    """Folders of shards to train on, on a disk or in a bucket (gs://, s3://): audio shards, or feature shards for the
    LM and DPD."""
    validation_folder: tuple[str, ...] = ()
    """Folders of held-out shards; empty: the last `holdout` of the records of `folder`, which are then excluded
    from training."""
    holdout: float = 0.02
    """Fraction of the records (at least one) held out when there is no validation folder."""
    networks: str = ""
    """Folder of the released networks the features were made with, or hf://owner/name on the Hugging Face Hub, for the
    provenance check; empty: unchecked."""
    batch_size: int = 8
    """Items per step, over all devices."""
    crop_samples: int = 245_760
    """Length of an audio crop, samples at the network's rate."""
    window_tokens: int = 256
    """Length of a feature window, semantic tokens at 25 Hz."""
    text_length: int = 48
    """Length in word pieces to which captions are cut or padded."""
    text_tokenizer: str = ""
    """The tokenizer.json of a text tower with its own vocabulary (BERT, CLAP); empty: the packaged one."""
    hard_negative_group: int = 1
    """Consecutive items of a batch that share a genre (harder negatives for MuLan); 1: no grouping."""
    text_prefix_probability: float = 0.0
    """Probability that a feature window's prefix comes from a caption instead of the audio, 0 to 1."""
    jitter_probability: float = 0.5
    """Probability that an audio prefix is one of its jittered variants instead of the clean one, 0 to 1."""
    seed: int = 0
    """Seed of the order, crops, captions and prefixes."""
    threads: int = 2
    """Threads that read and decode records."""
    prefetch: int = 4
    """Batches prepared in advance."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "crop_samples", "window_tokens", "text_length", "hard_negative_group"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} is {getattr(self, name)}; it must be at least 1")
        for name, least, largest in (("seed", 0, 2**63 - 1), ("threads", 0, 1024), ("prefetch", 1, 10_000)):
            if not least <= getattr(self, name) <= largest:
                raise UserError(f"data.{name} is {getattr(self, name)}; it must be from {least} to {largest}")
        for name in ("text_prefix_probability", "jitter_probability"):
            if not 0 <= getattr(self, name) <= 1:  # NaN too
                raise UserError(f"data.{name} is {getattr(self, name)}; it must be from 0 to 1")
        if not 0 <= self.holdout < 1:
            raise UserError(f"data.holdout is {self.holdout}; it must be at least 0 and below 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """Processes that train together. All of them run the same command and share the work folder."""

    join: bool = False
    """Connects to the other processes before training. On Cloud TPU, GKE, Slurm and Open MPI, this flag is enough."""
    coordinator: str = ""
    """On other systems: host:port of process 0."""
    count: int = 0
    """On other systems: number of processes."""
    index: int = -1
    """On other systems: index of this process, from 0."""

    def __post_init__(self) -> None:
        given = (bool(self.coordinator), self.count > 0, self.index >= 0)
        if any(given) and not (self.join and all(given) and self.index < self.count):
            raise UserError(
                f"hosts: join {self.join}, coordinator {self.coordinator!r}, count {self.count}, index {self.index}: "
                "set join alone, or all four with an index below count"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What a run reports besides its losses."""

    preview_every: int = 0
    """Steps between previews: sound and spectrograms of held-out items; 0: none."""
    preview_items: int = 2
    """Items of the first held-out batch that are previewed."""
    profile_first: int = 0
    """First step of a profile for `xprof` or Perfetto, written to <workdir>/profile; the first step of a process
    compiles and should not be profiled."""
    profile_steps: int = 0
    """Steps in the profile; 0: no profile."""
    digests: bool = False
    """Adds digests of the batch and of each random draw to the metrics, to verify that runs are paired. Set
    `log_every` to 1 to get them at every step."""
    peak_tflops: float = 0.0
    """Peak of one device in TFLOP/s, for the utilisation; 0: the published peak on TPUs, a measured one elsewhere."""
    wandb_project: str = ""
    """Project of Weights & Biases that gets what TensorBoard gets; empty: none. It needs the extra `wandb`."""


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
    """Adapters, which are trained in place of the weights."""
    steps: int = option(1000, group="optimisation")
    """Optimiser steps in all."""
    accumulate: int = 1
    """Number of equal parts into which a batch is divided; they are computed one after the other before the update,
    to save memory. MuLan contrasts items within each part."""
    seed: int = 0
    """Seed of the initialisation and of the noise of each step."""
    ema_decay: float = 0.999
    """Upper limit of the EMA's decay; the decay at step t is min(ema_decay, (1 + t) / (10 + t))."""
    log_every: int = option(10, group="when to evaluate and save")
    """Steps between lines of metrics."""
    eval_every: int = 200
    """Steps between evaluations on held-out batches; 0: only after the last step."""
    eval_batches: int = 8
    """Held-out batches per evaluation."""
    save_every: int = 1000
    """Steps between checkpoints; 0: only `save_minutes` counts. The last step is always saved."""
    save_minutes: float = 10.0
    """Minutes of wall time between checkpoints; 0: only `save_every` counts."""
    stop_minutes: float = 0.0
    """Minutes of wall time after which this process saves and exits, to be resumed later; 0: no limit."""
    sigterm_seconds: float = 25.0
    """Seconds allowed for the save after SIGTERM; if it takes longer, a message names the last complete checkpoint.
    (Slurm, Kubernetes and Google's spot machines kill 30 s after SIGTERM by default.)"""
    keep_last: int = 2
    """Number of latest checkpoints to keep."""
    keep_every: int = 0
    """Checkpoints at multiples of this many steps are never deleted; 0: no such checkpoints."""
    on_nonfinite: typing.Literal["stop", "skip", "rollback"] = option(
        "stop", group="numbers that are not finite"
    )
    """Reaction to a step whose loss or gradient is not finite, after its replay bundle is written: "stop" saves and
    ends the run, "skip" drops the batch, "rollback" restores the last checkpoint and continues with later data."""
    nonfinite_limit: int = 5
    """Number of skips or rollbacks after which a process stops."""
    mesh: tuple[int, int, int] = option((-1, 1, 1), group="devices")
    """Devices on the axes (data, fsdp, tensor); one may be -1: all remaining devices."""
    zero_stage: typing.Literal[1, 3] = 3
    """What the mesh axis fsdp splits, as ZeRO (arXiv 1910.02054) numbers it. 3: parameters, optimiser moments and
    average; the parameters of each block are gathered where they are used. 1: moments and average only; parameters are
    gathered once per step, but take more memory."""
    matmul_precision: typing.Literal["default", "bfloat16"] = "default"
    """"bfloat16": the factors of linear layers' products are rounded to bfloat16, their sums are float32. The
    gradients of a step take 0.75 to 0.85 times as long on a CPU with bfloat16 units; TPUs do so by default."""
    hosts: HostsConfig = dataclasses.field(default_factory=HostsConfig)
    """Training by several processes."""
    watch: WatchConfig = dataclasses.field(default_factory=WatchConfig)
    """Previews, profile, digests, utilisation."""
    workdir: str = option("runs/default", group="where to write")
    """Folder of checkpoints, metrics.jsonl and config.json, on a disk or in a bucket (gs://, s3://); training resumes
    if it holds a checkpoint."""
    init_from: str = option("", group="initial weights")
    """Initial weights of a new run: a run folder (its EMA), a folder of released networks, the name of a packaged
    release ("mini"), or hf://owner/name on the Hugging Face Hub; empty: random initialisation."""

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "log_every", "eval_batches", "keep_last"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.data.batch_size % self.accumulate:
            raise UserError(
                f"data.batch_size {self.data.batch_size} does not divide into accumulate {self.accumulate}"
            )
        if not 0 <= self.seed < 2**32 - 1:  # keys have 32 bits, and evaluation uses the next seed
            raise UserError(f"seed is {self.seed}; it must be from 0 to {2**32 - 2}")
        if self.accumulate > 1 and self.data.hard_negative_group > 1:
            raise UserError(
                f"accumulate {self.accumulate} with data.hard_negative_group {self.data.hard_negative_group}: the "
                "parts of a batch would divide the groups; set one of them to 1"
            )
        if self.accumulate > 1 and getattr(self.stage.model, "quantiser", None) is not None:
            raise UserError(
                f"accumulate is {self.accumulate}; it must be 1 with a quantiser, whose codebooks follow whole batches"
            )
        if self.watch.digests and self.accumulate > 1:
            raise UserError(f"watch.digests with accumulate {self.accumulate}: digests need accumulate 1")
        if self.lora.rank and not self.init_from:
            raise UserError(
                f"lora.rank is {self.lora.rank} without --init-from: adapters need weights to adapt"
            )
        if self.stage.teacher is not None and (self.lora.rank or not self.init_from):
            raise UserError(
                "distillation needs --init-from (a released teacher) and no adapters (lora.rank 0)"
            )
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay is {self.ema_decay}; it must be at least 0 and below 1")


def with_fields(model: Any, **changes: Any) -> Any:
    """A model's config with the fields replaced in it and in every nested config that has them."""
    inner = {
        field.name: with_fields(getattr(model, field.name), **changes)
        for field in dataclasses.fields(model)
        if dataclasses.is_dataclass(getattr(model, field.name))
    }
    direct = {name: value for name, value in changes.items() if hasattr(model, name)}
    return dataclasses.replace(model, **inner, **direct)


def load_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """The `TrainConfig` that the file's `config()` returns, with `["--dotted.name", "value", ...]` applied.

    Raises:
        UserError: there is no such config, the file is not a config, a field is unknown, or a value is not valid.
    """
    function = function_of(path, "config")
    config = function()
    if not isinstance(config, TrainConfig):
        raise UserError(f"{path}: config() returned {type(config).__name__}; it must return a TrainConfig")
    summary = docstring(sys.modules[function.__module__])
    return parse_options(config, overrides or [], f"melody train {path}", summary=summary)
