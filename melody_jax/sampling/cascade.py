"""The public face of the cascade: `load("mini").generate(prompts, seconds=10, seed=0)`."""

import copy
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tokenizers import Tokenizer
from tqdm import tqdm

from melody_jax import audio, diffusion, release
from melody_jax.errors import UserError
from melody_jax.models.functional import Params
from melody_jax.sampling import decode, edit, windows
from melody_jax.sampling.prompts import PromptEncoder
from melody_jax.sampling.request import Prompt, Request, make_requests
from melody_jax.sampling.windows import Controls, SamplerConfig

NETWORKS = ("mulan", "lm", "dpd", "vae")


class Group(NamedTuple):
    """Requests that one compiled program serves, as one batch."""

    config: SamplerConfig
    chunks: int
    """Chunks after the first window; or, of sources, the windows to fill."""
    requests: list[Request]
    """Their `best_of` candidates are rows of the batch."""
    pieces: list[edit.Piece]
    """The source of each row, if they have sources; one has as many windows to fill as the other."""

    @property
    def rows(self) -> list[tuple[Request, int]]:
        """(request, candidate) of each row of the batch."""
        return [(request, candidate) for request in self.requests for candidate in range(request.best_of)]


class Melody:
    """A loaded cascade: `sample_rate` in Hz, `window_seconds`, `params`, `configs`, `tokenizer` of texts."""

    sample_rate = audio.SAMPLE_RATE

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

    @property
    def hash(self) -> str:
        """Names the weights of all networks that sampling uses, 16 hexadecimal digits."""
        together = "".join(self.hashes[network] for network in sorted(self.hashes) if network != "tokenizer")
        return hashlib.sha256(together.encode()).hexdigest()[:16]

    def spread(self, mesh: Mesh) -> "Melody":
        """The same with its batches spread over the mesh's devices, which batches must then divide over."""
        whole = NamedSharding(mesh, PartitionSpec())
        placed = {name: jax.device_put(self.params[name], whole) for name in ("lm", "dpd", "vae")}
        return Melody(self.params | placed, self.configs, self.tokenizer, self.hashes, mesh)

    @property
    def window_samples(self) -> int:
        """Samples of one window: what the networks hear and make at a time."""
        return self.configs["dpd"].frames * self.configs["vae"].hop

    @property
    def window_seconds(self) -> float:
        """Seconds of one window."""
        return self.window_samples / self.sample_rate

    @property
    def chunk_seconds(self) -> float:
        """By how much a chunk makes the music longer."""
        return self.window_seconds / self.configs["dpd"].chunks

    def generate(
        self, prompts: Prompt | Sequence[Prompt], *, progress: bool = False, **settings: Any
    ) -> list[np.ndarray]:
        """Music for each prompt: float32 (samples,) in [-1, 1] at `sample_rate`, as long as was asked for.

        prompts: one text, or a list of them; in a list, several `Part`s (words and sounds, weighted) make one prompt.
        settings: any field of `Request` by name, such as seconds=30 or guidance_scale=[1.5, 2.5]: one value for all, or
        a list of one each. One seed gives item i the seed + i. An item's clip depends on its own settings only.
        progress: shows a bar of the chunks.
        Raises UserError, one line, for anything out of its range.
        """
        return self.run(make_requests(prompts, settings), progress=progress)

    def run(self, requests: Sequence[Request], *, progress: bool = False) -> list[np.ndarray]:
        """The clips (samples,) of the requests, in their order; those that share a program are made in one batch."""
        clips: dict[Request, np.ndarray] = {}
        for group in self.groups(requests):
            waves = self._edited(group, progress) if group.pieces else self._made(group, progress)
            clips |= zip(group.requests, self._best(group, waves), strict=True)
        return [clips[request] for request in requests]

    def _made(self, group: Group, progress: bool) -> list[np.ndarray]:
        """The sound of each row, made from nothing."""
        windows = islice(self.windows(group), 1 + group.chunks)
        bar = tqdm(windows, total=1 + group.chunks, desc="chunks", disable=not (progress and group.chunks))
        lengths = [round(request.seconds * self.sample_rate) for request, _ in group.rows]
        waves, done = np.empty((len(lengths), max(lengths)), np.float32), 0
        for stretch in _cut(self._sound(bar, group.config.dpd.frames), max(lengths)):
            waves[:, done : done + stretch.shape[1]] = stretch
            done += stretch.shape[1]
        return [wave[:length] for wave, length in zip(waves, lengths, strict=True)]

    def _edited(self, group: Group, progress: bool) -> list[np.ndarray]:
        """The sound of each row, made from its source."""
        keep_tokens, controls = [request.keep_tokens for request, _ in group.rows], self.controls_at(group)
        for number in tqdm(range(group.chunks), desc="windows", disable=not (progress and group.chunks > 1)):
            gap, index = edit.gap(group.pieces, keep_tokens, number), jnp.int32(number)
            asked = (group.config, controls(gap.seconds))
            window = gap.window
            if gap.new_tokens.any():
                there = window.semantic_tokens, gap.new_tokens
                tokens = windows.fill_tokens(self.params["lm"], *asked, *there, index, gap.given, gap.draws)
                window = window._replace(semantic_tokens=tokens)
            latents = windows.fill_latents(self.params["dpd"], *asked, window, gap.new_frames, index)
            edit.fill(group.pieces, number, window._replace(latents=latents))
        longest = max(len(piece.latents) for piece in group.pieces)
        latents = [
            np.pad(piece.latents, ((0, longest - len(piece.latents)), (0, 0))) for piece in group.pieces
        ]
        decoder, window = (self.params["vae"], self.configs["vae"]), group.config.dpd.frames
        wave = np.concatenate(list(decode.decode(*decoder, [np.stack(latents)], window)), axis=1)
        return [edit.splice(piece, row) for piece, row in zip(group.pieces, wave, strict=True)]

    def stream(
        self, prompt: Prompt, *, seconds: float | None = None, **settings: Any
    ) -> Iterator[np.ndarray]:
        """Music for one prompt while it is being made: stretches float32 (n,) of it, in [-1, 1] at `sample_rate`.

        The first comes with the first window, then one with every chunk; put together they are what `generate` makes,
        to 1e-4. Memory does not grow with the length.
        seconds: where it ends, at most 600; None: never. settings: other fields of `Request` but `source`; `best_of`
        must be 1.
        Raises UserError, one line, for anything out of its range.
        """
        (request,) = make_requests([prompt], settings if seconds is None else settings | {"seconds": seconds})
        if request.best_of > 1:
            raise UserError(
                f"best_of is {request.best_of}; a stream is heard before it could be chosen, it must be 1"
            )
        if request.source is not None:
            raise UserError("a source cannot be streamed; use generate")
        (group,) = self.groups([request])
        made = self.windows(group)
        if seconds is not None:
            made = islice(made, 1 + group.chunks)
        samples = None if seconds is None else round(seconds * self.sample_rate)
        return (stretch[0] for stretch in _cut(self._sound(made, group.config.chunk_frames), samples))

    def _sound(self, blocks: Iterable[jax.Array], window: int) -> Iterator[np.ndarray]:
        """Stretches (rows, n) of the sound of latents, of which at least `window` are decoded at a time."""
        config = self.configs["vae"]
        window = max(
            window, self.configs["dpd"].frames // self.configs["dpd"].chunks + 2 * decode.context(config)
        )
        return decode.decode(self.params["vae"], config, blocks, window, self.mesh)

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """MuLan with its tokenizer. Raises `UserError` if it was not loaded."""
        if self.tokenizer is None:
            raise UserError("mulan was not loaded; prompts need it")
        return PromptEncoder(self.params["mulan"], self.configs["mulan"], self.tokenizer, self.window_samples)

    def groups(self, requests: Sequence[Request]) -> list[Group]:
        """The requests by the program that serves them, in the order of their first."""
        found: dict[tuple[SamplerConfig, int, bool], Group] = {}
        for request in requests:
            config, chunks, edited = self.sampler_config(request), self.chunks(request.seconds), []
            if request.source is not None:
                piece = edit.prepare(request, self.params, self.configs)
                edited = [copy.deepcopy(piece) for _ in range(request.best_of)]
                chunks = len(edited[0].fills)
            group = found.setdefault((config, chunks, bool(edited)), Group(config, chunks, [], []))
            group.requests.append(request)
            group.pieces.extend(edited)
        return list(found.values())

    def sampler_config(self, request: Request) -> SamplerConfig:
        """What has to be compiled for the request. Raises `UserError` if a network for it was not loaded."""
        if missing := [network for network in NETWORKS if network not in self.params]:
            raise UserError(f"{missing[0]} was not loaded; generating needs {', '.join(NETWORKS)}")
        scale, known = request.guidance_scale, self.configs["dpd"].guidance_range
        if known and not known[0] <= scale <= known[1]:
            raise UserError(
                f"guidance_scale is {scale}; the distilled diffusion knows {known[0]:g} to {known[1]:g}"
            )
        config = SamplerConfig(
            lm=self.configs["lm"],
            dpd=self.configs["dpd"],
            steps=int(request.steps),
            schedule=request.schedule,
            solver=request.solver,
            start=float(request.strength * diffusion.HALF_PI),
            guided=scale != 1 and not known,
            lm_guided=request.lm_guidance_scale != 1,
        )
        if request.top_k > config.candidates:
            config = dataclasses.replace(config, candidates=config.lm.semantic_vocab)
        return config

    def windows(self, group: Group) -> Iterator[jax.Array]:
        """New latents (rows, n, D) of the group, window and chunks, without end (`generate.windows`)."""
        params = {name: self.params[name] for name in ("lm", "dpd")}
        if self.mesh is not None and len(group.rows) % self.mesh.size:
            raise UserError(f"{len(group.rows)} clips do not divide over {self.mesh.size} devices")
        controls = self.controls_at(group)

        def at(number: int) -> Controls:
            begins = self.window_seconds + (number - 1) * self.chunk_seconds if number else 0.0
            return controls([begins] * len(group.rows))

        return windows.windows(params, group.config, at, self.mesh)

    def controls_at(self, group: Group) -> Callable[[Sequence[float]], Controls]:
        """Seconds from the beginning, one number a row -> what is asked for then: the scene that holds."""
        encoder, encoded = self.prompt_encoder, {}

        def prefix(prompt: Prompt) -> np.ndarray:
            key = prompt if isinstance(prompt, str) else id(prompt)
            if key not in encoded:
                encoded[key] = encoder.prefix(prompt)
            return encoded[key]

        requests = [request for request, _ in group.rows]
        stories = [[(at, prefix(prompt)) for at, prompt in request.scenes] for request in requests]
        none = np.full(self.configs["mulan"].levels, -1, np.int32)
        unwanted = [request.negative_prompt for request in requests]

        def column(name: str, dtype: Any) -> jax.Array:
            return jnp.asarray([getattr(request, name) for request in requests], dtype)

        def prefixes(seconds: Sequence[float]) -> jax.Array:
            held = [
                [made for at, made in story if at <= time + 1e-9][-1]
                for story, time in zip(stories, seconds, strict=True)
            ]
            return jnp.asarray(np.stack(held))

        controls = Controls(
            prefix_tokens=prefixes([0.0] * len(requests)),
            negative_prefix_tokens=jnp.asarray(
                np.stack([prefix(text) if text else none for text in unwanted])
            ),
            seeds=column("seed", np.int32),
            candidate=jnp.asarray([candidate for _, candidate in group.rows], jnp.int32),
            temperature=column("temperature", np.float32),
            top_k=jnp.asarray(
                [min(request.top_k, group.config.candidates) for request in requests], jnp.int32
            ),
            top_p=column("top_p", np.float32),
            lm_guidance_scale=column("lm_guidance_scale", np.float32),
            guidance_scale=column("guidance_scale", np.float32),
        )

        return lambda seconds: controls._replace(prefix_tokens=prefixes(seconds))

    def chunks(self, seconds: float) -> int:
        """Chunks after the first window that a clip needs."""
        missing = seconds - self.window_seconds
        return math.ceil(missing / self.chunk_seconds - 1e-9) if missing > 0 else 0

    def _best(self, group: Group, waves: list[np.ndarray]) -> Iterator[np.ndarray]:
        """The clip of each request of the group from the sound of every row: that of the best candidate."""
        rows = iter(waves)
        for request in group.requests:
            candidates = list(islice(rows, request.best_of))
            best = (
                0
                if request.best_of == 1
                else int(np.argmax([self.score(request, wave) for wave in candidates]))
            )
            yield candidates[best]

    def score(self, request: Request, wave: np.ndarray) -> float:
        """How close a clip (T,) is to its prompts in MuLan's space: the mean cosine, scene by scene.

        A scene is heard from its time to the next one's, at least a second of it.
        """
        begins = [round(at * self.sample_rate) for at, _ in request.scenes]
        cosines, encoder = [], self.prompt_encoder
        for begin, end, (_, prompt) in zip(begins, [*begins[1:], len(wave)], request.scenes, strict=True):
            scene = wave[begin : min(end, len(wave))]
            if len(scene) >= self.sample_rate or begin == 0:
                cosines.append(encoder.target(prompt) @ encoder.heard(scene))
        return float(np.mean(cosines))


def load(
    name: str = "mini",
    *,
    folder: str | Path | None = None,
    networks: Sequence[str] = NETWORKS,
    distilled: bool = False,
) -> Melody:
    """The released cascade `name`, from the package or from `folder/name`; nothing is downloaded.

    networks: those to load; generating needs the default, measuring stages also "tokenizer".
    distilled: the diffusion for 1, 2 or 4 steps takes the place of the other one (docs/distillation.md).

    Raises UserError if there is no such release, a file of it is missing or damaged, or its networks were not made
    for each other (the hashes in each JSON name the networks it was trained with).
    """
    root = Path(folder) if folder is not None else release.WEIGHTS
    path = root / name
    if not path.is_dir():
        there = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        raise UserError(f"no released model {name!r} in {root}; there are: {', '.join(there) or 'none'}")
    if distilled:
        networks = ["dpd_distilled" if network == "dpd" else network for network in networks]
    loaded = {network: release.load_network(path, network) for network in networks}
    own = {network: release.network_hash(path, network) for network in networks}
    for network, (_, _, needs) in loaded.items():
        for other, digest in needs.items():
            if other in own and own[other] != digest:
                raise UserError(
                    f"{path}: {network} was trained with {other} {digest[:12]}, but {other} here is {own[other][:12]}; "
                    "take all files from one release"
                )
    loaded = {release.DIFFERENCES.get(network, network): parts for network, parts in loaded.items()}
    configs = {network: config for network, (_, config, _) in loaded.items()}
    tokenizer = release.load_tokenizer(path, configs["mulan"].text.vocab_size) if "mulan" in configs else None
    return Melody({network: params for network, (params, _, _) in loaded.items()}, configs, tokenizer, own)


def _cut(stretches: Iterable[np.ndarray], samples: int | None) -> Iterator[np.ndarray]:
    """The first so many samples of the stretches (rows, n); None: all."""
    left = math.inf if samples is None else samples
    for stretch in stretches:
        yield stretch[:, : int(min(left, stretch.shape[1]))]
        left -= stretch.shape[1]
        if left <= 0:
            return
