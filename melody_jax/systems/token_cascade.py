"""What AudioLM and MusicLM share: a semantic, a coarse and a fine language model, and a residual-VQ codec.

    semantic tokens --coarse--> first codes of each frame --fine--> the other codes --codec--> waveform

Semantic and coarse tokens are written in windows that overlap by half: the second half of a window is the context of
the next. Fine codes are written in shorter windows one after the other, from the coarse codes of their own time; the
last window ends with the clip and begins with codes that are written already. All draws of an item derive from its own
key, so a clip does not depend on its batch.

Tokens and codes that clips begin with, those of a recording, are context in the same way.

B batch, P prefix tokens, U semantic tokens of a window, S semantic tokens, N codes in sequence, L frames, V levels.
"""

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from melody_jax.audio_format import TOKEN_RATE
from melody_jax.melody_tokens import NONE
from melody_jax.models import vae
from melody_jax.models.decoding import Generated
from melody_jax.models.functional import Params
from melody_jax.sampling import edges, plan
from melody_jax.sampling.decode import context, decode, truncate
from melody_jax.sampling.item_controls import Controls, make_controls
from melody_jax.sampling.passes import Evaluations
from melody_jax.sampling.precision import each_in_32_bits, in_32_bits
from melody_jax.sampling.progress import Progress, count_windows
from melody_jax.sampling.request import PromptLike, Request, make_requests
from melody_jax.sampling.settings import SamplingSettings
from melody_jax.sampling.system import System, check_streamed
from melody_jax.systems.token_networks import check_networks
from melody_jax.systems.token_writing import COARSE, FINE, SEMANTIC, Writing, write_tokens

PRIMER_STEPS = 8
"""Context that is shorter than half a window is read at once in multiples of 1/8 of a window, and the rest token by
token, so that few programs are compiled for recordings of any length."""
ControlsAt = Callable[[float], Controls]
"""A function of seconds from the beginning to the controls of a batch."""


class Beginning(NamedTuple):
    """What the clips of a batch begin with; of no length for clips without a source."""

    semantic: Int[Array, "B S"]
    codes: Int[Array, "B L V"]
    """The codes of all levels, in the time of the semantic tokens."""


class Written(NamedTuple):
    """The codes of clips."""

    codes: Int[Array, "B L V"]
    passes: Int[Array, ""]
    """Passes through the three language models, as their loops counted them."""


class TokenCascade(System):
    """The networks lm, coarse, fine and vae. Raises `UserError` if they do not belong together."""

    temperatures: ClassVar[tuple[float, float, float]]
    """Temperatures of the semantic, the coarse and the fine model where that of a request is 1."""

    def __init__(self, params: dict[str, Params], configs: dict[str, Any], hashes: dict[str, str]) -> None:
        self.params = params
        self.configs = configs
        self.hashes = hashes
        check_networks(configs)

    @property
    def window_tokens(self) -> int:
        """Semantic tokens of a window, U."""
        return self.configs["coarse"].condition.length

    @property
    def hop_tokens(self) -> int:
        """Semantic tokens that each window after the first adds."""
        return self.window_tokens - self.window_tokens // 2

    @property
    def window_seconds(self) -> float:
        """Seconds of one window."""
        return self.window_tokens / TOKEN_RATE

    @property
    def chunk_seconds(self) -> float:
        """Seconds that each window after the first adds."""
        return self.hop_tokens / TOKEN_RATE

    def program(self, request: Request) -> tuple[int, Writing]:
        """The windows of a request, and the settings that are compiled into its programs."""
        self.check(request)
        guided = bool(self.configs["lm"].prompt_length) and request.lm_guidance_scale != 1
        ids = max(self.configs[name].semantic_vocab for name in ("lm", "coarse", "fine"))
        candidates = plan.candidates_for(request.top_k, ids)
        return self.window_count(request.seconds), Writing(guided, candidates)

    @property
    def frames_per_token(self) -> int:
        """Frames of codes in the time of a semantic token."""
        return self.audio_format.token_samples // self.configs["vae"].hop

    def window_count(self, seconds: float, begun: int = 0) -> int:
        """Windows that write a clip of which `begun` semantic tokens exist."""
        missing = round(seconds * TOKEN_RATE - begun, 6)
        first = self.window_tokens - min(begun, self.window_tokens - self.hop_tokens)
        return 1 + max(0, math.ceil(round((missing - first) / self.hop_tokens, 6)))

    @abstractmethod
    def stream_parts(self, request: Request, count: int | None, writing: Writing) -> Iterator[Written]:
        """The codes of one request as they are written, of `count` windows; None: endlessly."""

    def parts(
        self,
        controls_at: ControlsAt,
        count: int | None,
        writing: Writing,
        beginning: Beginning | None = None,
        melody: Int[np.ndarray, "B _"] | None = None,
    ) -> Iterator[Written]:
        """Yields the codes of clips of `count` windows as they are written, the beginning's included; None: endlessly.

        The first part comes with the first window, and one more with every window; memory does not grow with them.
        `melody` are the melody tokens of the clips from their beginning on, for networks that follow them.
        """
        batch = len(controls_at(0.0).seeds)
        levels = self.configs["coarse"].code_levels
        semantic = jnp.zeros((batch, 0), jnp.int32)
        codes = jnp.zeros((batch, 0, levels + self.configs["fine"].code_levels), jnp.int32)
        if beginning is not None:
            semantic, codes = beginning
        coarse, fine = jnp.split(codes, [levels], axis=2)
        overlap = max((self.window_tokens - self.hop_tokens) * self.frames_per_token, self._fine_frames)
        yielded = 0
        written = semantic.shape[1]
        fine_windows = 0
        for number in itertools.count() if count is None else range(count):
            length = semantic.shape[1]
            controls = controls_at(written / TOKEN_RATE)  # of what is new
            tune = None
            if melody is not None:
                tune = self._tune(melody, written - min(length, self.window_tokens - self.hop_tokens))
            semantic, coarse, passes = self._window(number, writing, controls, semantic, coarse, tune)
            written += semantic.shape[1] - length
            missing = coarse.shape[1] if number + 1 == count else self._whole_fine_windows(coarse, fine)
            while fine.shape[1] < missing:
                fine, added = self._fine_window(fine_windows, writing, controls_at(0.0), coarse, fine)
                passes += added
                fine_windows += 1
            done = fine.shape[1]
            yield Written(jnp.concatenate([coarse[:, yielded:done], fine[:, yielded:]], axis=2), passes)
            forgotten = max(0, done - overlap)
            semantic = semantic[:, -self.window_tokens :]
            coarse = coarse[:, forgotten:]
            fine = fine[:, forgotten:]
            yielded = done - forgotten

    def write(
        self,
        controls_at: ControlsAt,
        count: int,
        writing: Writing,
        beginning: Beginning | None = None,
        melody: Int[np.ndarray, "B _"] | None = None,
        progress: Progress = False,
    ) -> Written:
        """The codes of clips of `count` windows, the beginning's included. `melody` as in `parts`."""
        parts = self.parts(controls_at, count, writing, beginning, melody)
        written = list(count_windows(parts, count, progress))
        codes = jnp.concatenate([part.codes for part in written], axis=1)
        return Written(codes, jnp.sum(jnp.stack([part.passes for part in written])))

    @in_32_bits
    def stream(
        self,
        prompt: PromptLike | None = None,
        *,
        seconds: float | None = None,
        progress: Progress = False,
        **settings: Any,
    ) -> Iterator[np.ndarray]:
        """Yields music while it is made: parts, float32 (n,) or (n, channels), at `sample_rate`.

        A part comes with a window of the language models, as soon as the decoder has what it looks ahead. Concatenated,
        the parts equal the clip of `generate` to the bit.
        seconds: the length, at most 600; None: endless. progress: as in `generate`. settings: other fields of
        `Request`; there is no `source`, and `best_of` must be 1.
        Raises `UserError`, one line, for a value out of its range. Warns as `generate` does.
        """
        (request,) = make_requests([prompt], settings if seconds is None else settings | {"seconds": seconds})
        check_streamed(request)
        count, writing = self.program(request)
        self.check_prompts(request)
        self.warn_of_unknown_words([request])
        if seconds is not None:
            self.warn_of_unused_scenes([request])
        windows = None if seconds is None else count
        parts = count_windows(self.stream_parts(request, windows, writing), windows, progress)
        samples = None if seconds is None else round(seconds * self.sample_rate)
        decoded = truncate(self._decode(part.codes for part in parts), samples)
        return each_in_32_bits(part[0] for part in edges.faded(decoded, self.sample_rate, samples))

    def count_passes(self, request: Request) -> Evaluations:
        """Passes through the three language models, counted while a clip as long as that of the request is written."""
        prefix = jnp.zeros((1, self.configs["lm"].prompt_length), jnp.int32)
        controls = make_controls(prefix, [SamplingSettings()])
        passes = self.write(lambda _: controls, self.window_count(request.seconds), Writing(False)).passes
        return Evaluations(int(passes), 0)

    def clips(
        self, requests: Sequence[Request], codes: Int[Array, "B L V"]
    ) -> list[Float32[np.ndarray, " T *C"]]:
        """The waveforms of codes, as many samples as the requests ask for, with faded ends."""
        clips = []
        for request, wave in zip(requests, self.waves(codes), strict=True):
            clip = wave[: round(request.seconds * self.sample_rate)]
            edges.fade_ends(clip, self.sample_rate)
            clips.append(clip)
        return clips

    def waves(self, codes: Int[Array, "B L V"]) -> Float32[np.ndarray, " B T *C"]:
        """The waveforms of codes, limited to [-1, 1]."""
        return np.concatenate(list(self._decode([codes])), axis=1)

    def _decode(self, parts: Iterable[Int[Array, "B _ V"]]) -> Iterator[Float32[np.ndarray, " B T *C"]]:
        """Parts of the waveforms of consecutive codes."""
        config = self.configs["vae"]
        latents = (vae.dequantise(self.params["vae"], config, codes) for codes in parts if codes.shape[1])
        window = max(self.window_tokens * self.frames_per_token, 4 * context(config))
        return decode(self.params["vae"], config, latents, window)

    def _tune(self, melody: np.ndarray, first: int) -> jax.Array:
        """The melody tokens of a window that begins at this semantic token."""
        tune = melody[:, first : first + self.window_tokens]
        missing = self.window_tokens - tune.shape[1]
        return jnp.asarray(np.pad(tune, ((0, 0), (0, missing)), constant_values=NONE))

    def _window(
        self,
        number: int,
        writing: Writing,
        controls: Controls,
        semantic: jax.Array,
        coarse: jax.Array,
        tune: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Semantic tokens (B, S) and coarse codes (B, L, V), one window longer, and the passes.

        `tune` (B, U) are the melody tokens of the window.
        """
        size = self.window_tokens
        most = size - self.hop_tokens
        length = min(semantic.shape[1], most)
        step = max(size // PRIMER_STEPS, 1)
        at_once = length if length == most else length // step * step
        window = partial(self._write_tokens, writing=writing, number=number, controls=controls, melody=tune)
        old = semantic[:, semantic.shape[1] - length :]
        tokens = window(
            self.params["lm"], self.configs["lm"], size, SEMANTIC, controls.prefix_tokens, old, at_once
        )
        codes, passes = self._coarse_window(window, controls, tokens.tokens, coarse, length, at_once)
        semantic = jnp.concatenate([semantic, tokens.tokens[:, length:]], axis=1)
        return semantic, codes, tokens.passes + passes

    def _coarse_window(
        self,
        window: Callable[..., Generated],
        controls: Controls,
        tokens: jax.Array,
        coarse: jax.Array,
        length: int = 0,
        at_once: int = 0,
    ) -> tuple[jax.Array, jax.Array]:
        """The coarse codes (B, L, V), longer by what they lack of a window, and the passes.

        tokens: the semantic tokens (B, U) of the window, of which the first `length` have codes already; `at_once` of
        these are read in one pass.
        """
        config = self.configs["coarse"]
        batch, _, levels = coarse.shape
        per_token = self.frames_per_token * levels
        prefix = controls.prefix_tokens[:, : config.prompt_length]
        prompt = jnp.concatenate([prefix, tokens], axis=1)
        flat = coarse.reshape(batch, -1)
        old = flat[:, flat.shape[1] - length * per_token :]
        count = self.window_tokens * per_token
        codes = window(self.params["coarse"], config, count, COARSE, prompt, old, at_once * per_token)
        new = codes.tokens[:, length * per_token :].reshape(batch, -1, levels)
        return jnp.concatenate([coarse, new], axis=1), codes.passes

    def coarse_codes(
        self, controls: Controls, writing: Writing, semantic: Int[Array, "B U"]
    ) -> Int[Array, "B L V"]:
        """The coarse codes of one window of semantic tokens."""
        window = partial(self._write_tokens, writing=writing, number=0, controls=controls)
        none = jnp.zeros((len(semantic), 0, self.configs["coarse"].code_levels), jnp.int32)
        return self._coarse_window(window, controls, semantic, none)[0]

    def all_codes(
        self, controls: Controls, writing: Writing, coarse: Int[Array, "B L V"]
    ) -> Int[Array, "B L _"]:
        """Coarse codes of at least a window of the fine model, with the fine codes of their time."""
        fine = jnp.zeros((len(coarse), 0, self.configs["fine"].code_levels), jnp.int32)
        number = 0
        while fine.shape[1] < coarse.shape[1]:
            fine, _ = self._fine_window(number, writing, controls, coarse, fine)
            number += 1
        return jnp.concatenate([coarse, fine], axis=2)

    @property
    def _write_tokens(self) -> Callable[..., Generated]:
        return partial(write_tokens, temperatures=self.temperatures)

    @property
    def _fine_frames(self) -> int:
        """Frames of a window of the fine model."""
        return self.configs["fine"].condition.length // self.configs["coarse"].code_levels

    def _whole_fine_windows(self, coarse: jax.Array, fine: jax.Array) -> int:
        """Frames up to which the fine codes can be written before the clip's end is known."""
        done = fine.shape[1]
        return done + (coarse.shape[1] - done) // self._fine_frames * self._fine_frames

    def _fine_window(
        self, number: int, writing: Writing, controls: Controls, coarse: jax.Array, fine: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The fine codes (B, L, V), one window longer, of coarse ones (B, L, V), and the passes.

        The last window ends with the coarse codes. If there are fewer than a window of them, the last frame is followed
        as often as is missing.
        """
        config = self.configs["fine"]
        batch, count, _ = coarse.shape
        size = self._fine_frames
        padded = jnp.pad(coarse, ((0, 0), (0, max(0, size - count)), (0, 0)), mode="edge")
        overlap = 0 if number else size // 2  # a recording's codes are the context of the first window
        start = fine.shape[1] - overlap
        first = max(0, min(start, count - size))
        old = fine[:, first:].reshape(batch, -1)
        written = self._write_tokens(
            self.params["fine"],
            config,
            min(size, count - first) * config.code_levels,
            FINE,
            padded[:, first : first + size].reshape(batch, -1),
            old,
            old.shape[1],
            writing=Writing(False, writing.candidates),
            number=number,
            controls=controls,
        )
        new = written.tokens[:, old.shape[1] :].reshape(batch, -1, config.code_levels)
        return jnp.concatenate([fine, new], axis=1), written.passes
