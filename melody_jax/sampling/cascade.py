"""The cascade: `load("mini").generate(prompts, seconds=10, seed=0)` makes music from prompts.

A call is planned (`plan.py`), its prompts are encoded (`prompts.py`), and the plan is run here: windows of latents
(`windows.py`), new windows of a source (`edit.py`), the waveform (`decode.py`).
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tokenizers import Tokenizer

from melody_jax import diffusion, release, release_folder, release_source
from melody_jax.errors import UserError
from melody_jax.models.functional import Params
from melody_jax.sampling import edges, edit, plan, windows
from melody_jax.sampling.decode import context, decode, truncate
from melody_jax.sampling.edit import EditedClip
from melody_jax.sampling.item_controls import Controls
from melody_jax.sampling.passes import Evaluations, cascade_count
from melody_jax.sampling.plan import NETWORKS, ProgramBatch
from melody_jax.sampling.precision import each_in_32_bits, in_32_bits
from melody_jax.sampling.progress import Progress, count_windows
from melody_jax.sampling.prompts import PromptEncoder
from melody_jax.sampling.request import PromptLike, Request, make_requests
from melody_jax.sampling.system import Encoded, System, check_streamed, controls_at, refuse_other_system
from melody_jax.sampling.windows import SamplerConfig


class Melody(System):
    """A loaded cascade: `sample_rate` in Hz, `channels`, `window_seconds`, `params`, `configs`, `tokenizer`."""

    def __init__(
        self,
        params: dict[str, Params],
        configs: dict[str, Any],
        tokenizer: Tokenizer | None,
        hashes: dict[str, str],
        mesh: Mesh | None = None,
    ) -> None:
        self.params = params
        self.configs = configs
        self.tokenizer = tokenizer
        self.hashes = hashes
        self.mesh = mesh

    def replicate_over(self, mesh: Mesh) -> "Melody":
        """The cascade with its weights on every device of the mesh, over which batches must divide."""
        sharding = NamedSharding(mesh, PartitionSpec())
        placed = {name: jax.device_put(self.params[name], sharding) for name in ("lm", "dpd", "vae")}
        return Melody(self.params | placed, self.configs, self.tokenizer, self.hashes, mesh)

    @property
    def window_samples(self) -> int:
        """Samples of one window, the longest stretch that the networks process at a time."""
        return plan.window_samples(self.configs)

    @property
    def window_seconds(self) -> float:
        """Seconds of one window."""
        return self.window_samples / self.sample_rate

    @property
    def chunk_seconds(self) -> float:
        """Seconds that each chunk adds after the first window."""
        return self.window_seconds / self.configs["dpd"].chunks

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """MuLan with its tokenizer. Raises `UserError` if it was not loaded."""
        if self.tokenizer is None:
            raise UserError("mulan was not loaded; prompts need it")
        return PromptEncoder(
            self.params["mulan"],
            self.configs["mulan"],
            self.tokenizer,
            self.window_samples,
            plan.control_vocabulary(self.configs),
            self.audio_format,
            (self.params["tempo"], self.configs["tempo"]) if "tempo" in self.params else None,
        )

    @in_32_bits
    def run(self, requests: Sequence[Request], *, progress: Progress = False) -> list[np.ndarray]:
        """The clips (samples,) of the requests, in order. Requests that share a program are one batch.

        Raises `UserError` for a request that does not fit the networks or its source, and for more samples than the
        memory holds.
        """
        source_audio = edit.read_sources(requests, self.configs)
        source_samples = {request: len(samples) for request, samples in source_audio.items()}
        batches = self.plan(requests, source_samples)
        plan.check_memory(requests, self.audio_format, source_samples)
        encoded = self.prompt_encoder.encode_requests(requests)
        clips: dict[Request, np.ndarray] = {}
        for batch in batches:
            if batch.edits:
                edited = self.analyse(batch, source_audio)
                waves = self._decode_edits(self.fill_windows(batch, edited, encoded, progress), batch)
            else:
                waves = self._sample_batch(batch, encoded, progress)
            clips |= self._best_candidates(batch, waves, encoded)
        last = {request: i for i, request in enumerate(requests)}
        return [
            clips[request] if last[request] == i else clips[request].copy()
            for i, request in enumerate(requests)
        ]

    def check(self, request: Request, source_samples: int | None = None) -> None:
        """Raises `UserError` if the request does not fit the networks or its source."""
        if request.source is None:
            self.plan([request])
        elif source_samples is not None:
            self.plan([request], {request: source_samples})

    def program(self, request: Request) -> tuple[SamplerConfig, int]:
        """The settings that are compiled into the program of a request, and its chunks."""
        return plan.sampler_config(request, self.configs), plan.chunk_count(request.seconds, self.configs)

    def count_passes(self, request: Request) -> Evaluations:
        """Passes through the language model and the diffusion, without the second pass of guidance."""
        sampler = plan.sampler_config(request, self.configs)
        return cascade_count(
            self.configs["dpd"],
            self.configs["vae"].hop / self.sample_rate,
            request.seconds,
            diffusion.nfe(sampler.solver, sampler.steps),
            tokens_per_pass=self.configs["lm"].tokens_per_pass,
        )

    def plan(
        self, requests: Sequence[Request], source_samples: Mapping[Request, int] | None = None
    ) -> list[ProgramBatch]:
        """The requests grouped by program, in the order of the first request of each.

        source_samples: length of the source of each request that has one.
        Raises `UserError` if a network is missing, or a request does not fit the networks or its source.
        """
        return plan.plan_batches(requests, self.configs, source_samples or {})

    @in_32_bits
    def stream(
        self, prompt: PromptLike, *, seconds: float | None = None, progress: Progress = False, **settings: Any
    ) -> Iterator[np.ndarray]:
        """Yields music for one prompt while it is made: parts, float32 (n,) or (n, channels), at `sample_rate`.

        The first part comes with the first window, and later ones with the chunks. Memory does not grow with the
        length. With `seconds`, the same windows are decoded as in `generate`, so that the concatenated parts equal its
        clip to the bit. An endless stream decodes less at a time, and equals it to within 1e-4 but for its end.
        seconds: the length, at most 600; None: endless. progress: as in `generate`. settings: other fields of
        `Request`; there is no `source`, and `best_of` must be 1.
        Raises `UserError`, one line, for a value out of its range. Warns as `generate` does.
        """
        (request,) = make_requests([prompt], settings if seconds is None else settings | {"seconds": seconds})
        check_streamed(request)
        (batch,) = self.plan([request])
        self.warn_of_unknown_words([request])
        if seconds is not None:
            self.warn_of_unused_scenes([request])
        latents = self.latents(batch, self.prompt_encoder.encode_requests([request]))
        if seconds is None:
            samples = None
            decoded = self._decode_stream(count_windows(latents, None, progress), batch.config.chunk_frames)
        else:
            samples = round(seconds * self.sample_rate)
            decoded = self._decode_windows(latents, batch, progress)
        parts = edges.faded(truncate(decoded, samples), self.sample_rate, samples)
        return each_in_32_bits(part[0] for part in parts)

    def latents(self, batch: ProgramBatch, encoded: Encoded) -> Iterator[jax.Array]:
        """Yields new latents (rows, n, D) of the batch endlessly: of the first window, then of each chunk."""
        params = {name: self.params[name] for name in ("lm", "dpd")}
        if self.mesh is not None and len(batch.rows) % self.mesh.size:
            raise UserError(f"{len(batch.rows)} clips do not divide over {self.mesh.size} devices")
        controls = self.controls_at(batch, encoded)

        def chunk_controls(number: int) -> Controls:
            start = self.window_seconds + (number - 1) * self.chunk_seconds if number else 0.0
            return controls([start] * len(batch.rows))

        return windows.stream_latents(params, batch.config, chunk_controls, self.mesh)

    def controls_at(self, batch: ProgramBatch, encoded: Encoded) -> Callable[[Sequence[float]], Controls]:
        """A function of seconds from the beginning, one number per row, to the controls at that time."""
        return controls_at(batch.rows, encoded, batch.config.candidates)

    def analyse(self, batch: ProgramBatch, source_audio: Mapping[Request, np.ndarray]) -> list[EditedClip]:
        """The source of each row of the batch in tokens and latents, before its first window is filled."""
        clips: list[EditedClip] = []
        for request, edit_plan in zip(batch.requests, batch.edits, strict=True):
            clip = edit.analyse_source(source_audio[request], edit_plan, self.params, self.configs)
            clips += [clip] * request.best_of
        return clips

    def fill_windows(
        self, batch: ProgramBatch, clips: list[EditedClip], encoded: Encoded, progress: Progress = False
    ) -> list[EditedClip]:
        """The edited clips with every window of their plans filled."""
        numbers = count_windows(range(batch.windows), batch.windows, progress)
        return edit.fill_windows(self.params, batch, clips, self.controls_at(batch, encoded), numbers)

    def _decode_edits(self, clips: list[EditedClip], batch: ProgramBatch) -> list[np.ndarray]:
        """The waveform of each edited clip, spliced into its source."""
        window = self._decoder_window(batch.config.dpd.frames)
        waves: dict[int, np.ndarray] = {}
        for length in {len(clip.latents) for clip in clips}:  # padding would be heard before the end
            numbers = [i for i, clip in enumerate(clips) if len(clip.latents) == length]
            latents = np.stack([clips[i].latents for i in numbers])
            parts = decode(self.params["vae"], self.configs["vae"], [latents], window)
            waves |= zip(numbers, np.concatenate(list(parts), axis=1), strict=True)
        return [
            edit.splice(clip.samples, clip.plan.regions, waves[i] / np.float32(clip.gain), self.sample_rate)
            for i, clip in enumerate(clips)
        ]

    def _sample_batch(self, batch: ProgramBatch, encoded: Encoded, progress: Progress) -> list[np.ndarray]:
        """The waveform of each row of a batch without sources."""
        lengths = [round(request.seconds * self.sample_rate) for request, _ in batch.rows]
        decoded = self._decode_windows(self.latents(batch, encoded), batch, progress)
        waves = np.empty((len(lengths), max(lengths), self.channels), np.float32)
        waves = waves[..., 0] if self.channels == 1 else waves
        written = 0
        for part in truncate(decoded, max(lengths)):
            waves[:, written : written + part.shape[1]] = part
            written += part.shape[1]
        clips = [wave[:length] for wave, length in zip(waves, lengths, strict=True)]
        for clip in clips:
            edges.fade_ends(clip, self.sample_rate)
        return clips

    def _decode_windows(
        self, latents: Iterable[jax.Array], batch: ProgramBatch, progress: Progress
    ) -> Iterator[np.ndarray]:
        """Parts (rows, n) of the waveform of the batch's windows, of which `latents` are."""
        config = batch.config
        total = config.dpd.frames + (batch.windows - 1) * config.chunk_frames
        counted = count_windows(islice(latents, batch.windows), batch.windows, progress)
        return self._decode_stream(counted, config.dpd.frames, total)

    def _decode_stream(
        self, latents: Iterable[jax.Array], window: int, total: int | None = None
    ) -> Iterator[np.ndarray]:
        """Parts (rows, n) of the waveform of latents, of which at least `window` are decoded at a time."""
        window = self._decoder_window(window)
        return decode(self.params["vae"], self.configs["vae"], latents, window, self.mesh, total)

    def _decoder_window(self, least: int) -> int:
        """Latents that are decoded at a time: at least `least`, and a chunk more than the context on either side.

        If the first window's latents suffice for the context and fewer new ones, the first part comes with them.
        """
        dpd = self.configs["dpd"]
        margin = 2 * context(self.configs["vae"])
        window = dpd.frames // dpd.chunks + margin
        if margin < dpd.frames - 1:
            window = min(window, dpd.frames - 1)
        return max(least, window)

    def _best_candidates(
        self, batch: ProgramBatch, waves: list[np.ndarray], encoded: Encoded
    ) -> Iterator[tuple[Request, np.ndarray]]:
        """(request, clip) from the waveforms of all rows: the candidate closest to the prompt."""
        rows = iter(waves)
        for request in batch.requests:
            yield request, self.best_candidate(encoded[request], list(islice(rows, request.best_of)))


@in_32_bits
def load(
    name: str = "mini",
    *,
    folder: str | Path | None = None,
    networks: Sequence[str] = NETWORKS,
    distilled: bool = False,
) -> Melody:
    """The released cascade `name`: a packaged one, that in `folder/name`, or "owner/name" on the Hugging Face Hub.

    networks: those to load. Generating needs the default; a source needs the "tokenizer" as well.
    distilled: loads the distilled diffusion, for 1, 2 or 4 steps, in place of the full one (docs/distillation.md).

    Raises `UserError` if there is no such release, one of its files is missing or damaged, or its networks do
    not belong together (the hashes in each JSON name the networks that it was trained with).
    """
    name, folder = release_source.local_name(name, folder)
    if "dpd" in networks:
        refuse_other_system(release_folder.root(folder) / name)
    if set(NETWORKS) <= set(networks) and _has_tempo_head(release_folder.root(folder) / name):
        networks = [*networks, "tempo"]
    if distilled:
        networks = ["dpd_distilled" if network == "dpd" else network for network in networks]
    params, configs, hashes, tokenizer = load_networks(name, folder, networks)
    return Melody(params, configs, tokenizer, hashes)


def load_networks(
    name: str, folder: str | Path | None, networks: Sequence[str]
) -> tuple[dict[str, Params], dict[str, Any], dict[str, str], Tokenizer | None]:
    """Parameters, configs and hashes of the networks of a release, and MuLan's tokenizer if it is among them.

    Raises `UserError` as `load` does.
    """
    root = release_folder.root(folder)
    path = root / name
    if not os.path.isdir(path):
        raise UserError(f"no released model {name!r} in {root}; available: {_releases(root)}")
    loaded = {network: release.load_network(path, network) for network in networks}
    hashes = {network: release.network_hash(path, network) for network in networks}
    for network, (_, _, needs) in loaded.items():
        for other, digest in release.needed(network, needs).items():
            if other in hashes and hashes[other] != digest:
                raise UserError(
                    f"{path}: {network} was trained with {other} {digest[:12]}, but {other} here is "
                    f"{hashes[other][:12]}; take all files from one release"
                )
    _check_shared(path, {network: needs for network, (_, _, needs) in loaded.items()})
    loaded = {release.DIFFERENCES.get(network, network): parts for network, parts in loaded.items()}
    configs = {network: config for network, (_, config, _) in loaded.items()}
    tokenizer = release.load_tokenizer(path, configs["mulan"].text.vocab_size) if "mulan" in configs else None
    return {network: params for network, (params, _, _) in loaded.items()}, configs, hashes, tokenizer


def _check_shared(path: Path, needs: dict[str, dict[str, str]]) -> None:
    """Raises `UserError` if two networks were trained with different ones of a kind that is not loaded."""
    seen: dict[str, tuple[str, str]] = {}
    for network, hashes in needs.items():
        for other, digest in release.needed(network, hashes).items():
            first, expected = seen.setdefault(other, (network, digest))
            if digest != expected:
                raise UserError(
                    f"{path}: {first} was trained with {other} {expected[:12]}, {network} with {digest[:12]}; "
                    "take all files from one release"
                )


def _has_tempo_head(path: Path) -> bool:
    """Whether a release has a tempo head beside its language model, not that of a base for another one."""
    home = release_folder.network_folder(path, "lm")
    return release_folder.network_folder(path, "tempo") == home and (home / "tempo.json").is_file()


def _releases(root: Path) -> str:
    """The names of the folders in `root`, or why they cannot be listed."""
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    except OSError as error:
        return f"none ({error.strerror})"
    return ", ".join(names) or "none"
