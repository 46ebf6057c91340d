"""Encodes prompts as points in MuLan's space, and points as prefix tokens.

Texts, sounds and blends of both all become one point: each part is centred within its modality
(models/mulan.py), and the weighted sum is scaled back to the unit sphere. Items are embedded one after the
other, so that an item's tokens do not depend on its batch.

N prompts, W word pieces, T samples, E embedding, P prefix levels.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32
from tokenizers import Tokenizer

from melody_jax import audio, text
from melody_jax.audio_format import DEFAULT_FORMAT, AudioFormat
from melody_jax.composer import prompt_facts
from melody_jax.control_tokens import NAMES, ControlVocabulary
from melody_jax.errors import InputWarning, UserError
from melody_jax.models import mulan, rvq, text_tower
from melody_jax.models.conditioning import WordPieces
from melody_jax.models.functional import Params
from melody_jax.models.mulan import MuLanConfig
from melody_jax.models.tempo_head import TempoHeadConfig, draw_tempo
from melody_jax.models.text_tower import TextConfig
from melody_jax.sampling.request import PromptLike, Request, is_array, prompt_parts
from melody_jax.sampling.settings import MAX_SECONDS, shorten

SHOWN_WORDS = 8
"""Unknown words that a warning lists."""
SHARPNESS = 2.0
"""Power to which the probabilities of tempi are raised before one is drawn: likely ones become likelier."""


@partial(jax.jit, static_argnames="config")
def text_targets(
    params: Params,
    config: MuLanConfig,
    ids: Int[Array | np.ndarray, "N W"],
    mask: Float[Array | np.ndarray, "N W"],
) -> Float[Array, "N E"]:
    """Centred embeddings of texts, given as word pieces and their mask (1: a word piece, 0: padding)."""

    def embed(item: tuple[jax.Array, jax.Array]) -> jax.Array:
        return mulan.embed_text(params, config, item[0][None], item[1][None])[0]

    return mulan.centre(params, jax.lax.map(embed, (ids, mask)), "text")


@partial(jax.jit, static_argnames="config")
def text_pieces(
    params: Params,
    config: TextConfig,
    ids: Int[Array | np.ndarray, "N W"],
    mask: Float[Array | np.ndarray, "N W"],
) -> WordPieces:
    """What the text tower says of every word piece; `params` are those of its encoder."""

    def encode(item: tuple[jax.Array, jax.Array]) -> jax.Array:
        return text_tower.encode_pieces(params, config, item[0][None], item[1][None])[0]

    return WordPieces(jax.lax.map(encode, (ids, mask)), jnp.asarray(mask))


@partial(jax.jit, static_argnames="config")
def audio_targets(
    params: Params, config: MuLanConfig, windows: Float[Array | np.ndarray, "N T"]
) -> Float[Array, "N E"]:
    """Centred embeddings of windows of audio, float32 at 24 kHz."""
    embedded = jax.lax.map(lambda window: mulan.embed_music(params, config, window[None])[0], windows)
    return mulan.centre(params, embedded, "music")


@partial(jax.jit, static_argnames="config")
def targets_to_prefix(
    params: Params, config: MuLanConfig, targets: Float[Array | np.ndarray, "N E"]
) -> Int32[Array, "N P"]:
    """Prefix tokens of points on the unit sphere."""
    return jax.lax.map(partial(rvq.quantise, params["codebooks"][: config.levels]), targets)


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedPrompt:
    """A prompt, encoded for the networks."""

    point: Float[np.ndarray, " E"]
    """Its point in MuLan's space."""
    prefix_tokens: Int32[np.ndarray, " P"]
    """Its prefix tokens, and in a request the control tokens behind them, for a model with control tokens."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedRequest:
    """The prompts of one request, each encoded once."""

    scenes: tuple[tuple[float, EncodedPrompt], ...]
    """(start in seconds, prompt) in the order of time; the first starts at 0."""
    negative_prefix_tokens: Int32[np.ndarray, " P"]
    """Prefix tokens of the negative prompt; -1 is the learned null prefix."""

    def prefix_at(self, seconds: float) -> Int32[np.ndarray, " P"]:
        """The prefix tokens of the scene at this time."""
        return [prompt.prefix_tokens for start, prompt in self.scenes if start <= seconds + 1e-9][-1]


class UnknownWords(NamedTuple):
    """Words of a prompt that the vocabulary cannot spell."""

    prompt: str
    words: list[str]
    is_all: bool
    """Whether the prompt has no other words."""

    def __str__(self) -> str:
        words = ", ".join(map(shorten, self.words[:SHOWN_WORDS]))
        more = f" and {len(self.words) - SHOWN_WORDS} more" if len(self.words) > SHOWN_WORDS else ""
        words = words + more
        if self.is_all:
            listed = f": {words}" if words else ""
            return f"prompt {shorten(self.prompt)} has no word of the model's vocabulary and says nothing to it{listed}"
        return f"prompt {shorten(self.prompt)} has words that are not in the model's vocabulary: {words}"


class PromptEncoder:
    """MuLan with its tokenizer. Audio is embedded in windows of `window_samples`; their points are averaged.

    `controls` is the vocabulary of the control tokens, if the networks take them. `audio_format` is that of waveforms
    and of the windows; MuLan hears them in its own (24 kHz mono).
    """

    def __init__(
        self,
        params: Params,
        config: MuLanConfig,
        tokenizer: Tokenizer,
        window_samples: int,
        controls: ControlVocabulary | None = None,
        audio_format: AudioFormat = DEFAULT_FORMAT,
        tempo_head: tuple[Params, TempoHeadConfig] | None = None,
    ) -> None:
        self.params = params
        self.config = config
        self.tokenizer = tokenizer
        self.audio_format = audio_format
        self.window_samples = window_samples * DEFAULT_FORMAT.sample_rate // audio_format.sample_rate
        self.controls = controls
        self.tempo_head = tempo_head

    def target(self, prompt: PromptLike) -> Float[np.ndarray, " E"]:
        """The point of a prompt, on the unit sphere.

        Raises:
            UserError: a text is too long, a sound cannot be read or is shorter than one second.
        """
        total = np.zeros(self.config.embedding, np.float32)
        for part in prompt_parts(prompt):
            if part.audio is None:
                ids, mask = tokenize_prompt(part.text, self.config.text.max_length, self.tokenizer)
                point = text_targets(self.params, self.config, ids, mask)[0]
            else:
                point = self.embed_audio(read_audio(part.audio, "an audio prompt", self.audio_format))
            total += part.weight * np.asarray(point)
        return np.asarray(mulan.unit(jnp.asarray(total)))

    def word_pieces(self, prompts: Sequence[str], length: int) -> WordPieces:
        """The outputs of the text tower for texts of at most `length` word pieces, [CLS] and [SEP] included.

        Raises `UserError` if one is longer.
        """
        ids, masks = zip(
            *(tokenize_prompt(prompt, length, self.tokenizer) for prompt in prompts), strict=True
        )
        return text_pieces(
            self.params["text"]["encoder"], self.config.text, np.concatenate(ids), np.concatenate(masks)
        )

    def check(self, prompt: PromptLike) -> None:
        """Raises what `target` would, without running a network."""
        for part in prompt_parts(prompt):
            if part.audio is None:
                tokenize_prompt(part.text, self.config.text.max_length, self.tokenizer)
            else:
                read_audio(part.audio, "an audio prompt", self.audio_format)

    def check_request(self, request: Request) -> None:
        """Raises what `encode_requests` would, without running a network."""
        _require_prompt(request)
        for _, prompt in request.scenes:
            self.check(with_controls(prompt, request.controls))
        if request.negative_prompt.strip():
            self.check(request.negative_prompt)

    def unknown_words(self, prompts: Iterable[PromptLike]) -> list[UnknownWords]:
        """The texts of the prompts, each once, that have words which the vocabulary cannot spell."""
        parts = [part for prompt in prompts for part in prompt_parts(prompt) if part.audio is None]
        entries = [
            UnknownWords(prompt, *text.unknown_words(prompt, self.tokenizer))
            for prompt in dict.fromkeys(part.text for part in parts)
        ]
        return [entry for entry in entries if entry.words or entry.is_all]

    def warn_of_unknown_words(self, requests: Sequence[Request]) -> None:
        """Warns once of each text of the requests that has words which the vocabulary cannot spell."""
        prompts = [prompt for request in requests for prompt in request.texts]
        for entry in self.unknown_words(prompts):
            warnings.warn(str(entry), InputWarning, stacklevel=4)  # of the caller of `System.generate`

    def encode(self, prompt: PromptLike) -> EncodedPrompt:
        """The point and the prefix tokens of a prompt. Raises as `target`."""
        point = self.target(prompt)
        prefix = targets_to_prefix(self.params, self.config, point[None])[0]
        return EncodedPrompt(point=point, prefix_tokens=np.asarray(prefix))

    def encode_requests(self, requests: Sequence[Request]) -> dict[Request, EncodedRequest]:
        """The prompts of every request; each distinct prompt is encoded once. Raises as `target`.

        The settings that say a tempo, key or metre are both control tokens and words of the prompt; so is the tempo
        that is drawn where nothing says one, if there is a tempo head.
        """
        cache: dict[Any, EncodedPrompt] = {}
        null = np.full(self.config.levels, -1, np.int32)

        def encode(prompt: PromptLike, controls: Mapping[str, Any]) -> EncodedPrompt:
            key = prompt if isinstance(prompt, str) else id(prompt), *controls.values()
            if key not in cache:
                cache[key] = self.encode(with_controls(prompt, controls))
            return cache[key]

        def encode_scene(prompt: PromptLike, controls: Mapping[str, Any]) -> EncodedPrompt:
            encoded = encode(prompt, controls)
            tokens = self._control_tokens(prompt, controls)
            return replace(encoded, prefix_tokens=np.concatenate([encoded.prefix_tokens, tokens]))

        def encode_request(request: Request) -> EncodedRequest:
            _require_prompt(request)
            controls = request.controls
            if self._needs_tempo(request):
                controls = self._drawn_tempo(request, encode(request.scenes[0][1], controls)) | controls
            scenes = [(start, encode_scene(prompt, controls)) for start, prompt in request.scenes]
            is_guided = request.negative_prompt.strip()
            negative = encode(request.negative_prompt, {}).prefix_tokens if is_guided else null
            missing = len(scenes[0][1].prefix_tokens) - len(negative)
            negative = np.pad(negative, (0, missing), constant_values=-1)
            return EncodedRequest(scenes=tuple(scenes), negative_prefix_tokens=negative)

        return {request: encode_request(request) for request in dict.fromkeys(requests)}

    def _needs_tempo(self, request: Request) -> bool:
        """Whether a tempo is drawn: nothing says one, and neither a source nor a sound of the prompt has its own."""
        if self.tempo_head is None or request.source is not None or request.bpm:
            return False
        prompts = [prompt for _, prompt in request.scenes]
        has_sound = any(part.audio is not None for prompt in prompts for part in prompt_parts(prompt))
        return not has_sound and not any("tempo_bpm" in facts_of_words(prompt) for prompt in prompts)

    def _drawn_tempo(self, request: Request, encoded: EncodedPrompt) -> dict[str, float]:
        """The control of a tempo that the first scene may mean.

        None for music without a beat, and where a prompt is too long for more words.
        """
        assert self.tempo_head is not None
        tempo = draw_tempo(*self.tempo_head, encoded.point, request.seed, SHARPNESS)
        if tempo is None:
            return {}
        drawn = {"tempo_bpm": float(round(tempo))}
        try:
            for _, prompt in request.scenes:
                self.check(with_controls(prompt, request.controls | drawn))
        except UserError:
            return {}
        return drawn

    def _control_tokens(self, prompt: PromptLike, controls: Mapping[str, Any]) -> Int32[np.ndarray, " C"]:
        """The control tokens of a scene: what the controls say, and else the words of its prompt."""
        if self.controls is None:
            return np.zeros(0, np.int32)
        return self.controls.tokens(facts_of_words(prompt) | dict(controls))

    def embed_audio(self, wave: Float[np.ndarray, " T *C"]) -> Float[np.ndarray, " E"]:
        """The point of a sound in `audio_format`: the mean of the points of its windows, scaled to the unit sphere.

        The last window ends with the sound. A sound shorter than a window is repeated until it fills one.
        """
        wave = audio.convert(wave, self.audio_format, DEFAULT_FORMAT)
        size = self.window_samples
        wave = wave if len(wave) >= size else np.resize(wave, size)
        ends = dict.fromkeys([*range(size, len(wave), size), len(wave)])
        points = [
            np.asarray(audio_targets(self.params, self.config, wave[None, end - size : end])[0])
            for end in ends
        ]
        return np.asarray(mulan.unit(jnp.asarray(np.mean(points, axis=0))))

    def similarity(self, encoded: EncodedRequest, wave: Float[np.ndarray, " T *C"]) -> float:
        """How close a clip is to its prompts in MuLan's space: the cosine, averaged over scenes.

        A scene lasts until the next one starts. Scenes shorter than one second are ignored, except the first.
        """
        rate = self.audio_format.sample_rate
        starts = [round(start * rate) for start, _ in encoded.scenes]
        ends = [*starts[1:], len(wave)]
        cosines = []
        for start, end, (_, prompt) in zip(starts, ends, encoded.scenes, strict=True):
            scene = wave[start : min(end, len(wave))]
            if len(scene) >= rate or start == 0:
                cosines.append(prompt.point @ self.embed_audio(scene))
        return float(np.mean(cosines))


def facts_of_words(prompt: PromptLike) -> dict[str, Any]:
    """Facts (control_tokens.py) that the texts of a prompt mention; of several parts the first that does."""
    facts: dict[str, Any] = {}
    for part in prompt_parts(prompt):
        if part.text and part.weight > 0:
            mentioned = prompt_facts.of_text(part.text)
            facts = {name: getattr(mentioned, name) for name in NAMES if getattr(mentioned, name)} | facts
    return facts


def with_controls(prompt: PromptLike, controls: Mapping[str, Any]) -> PromptLike:
    """The prompt whose texts also say the tempo, key, mode and metre of `controls` that they do not mention already.

    MuLan follows a tempo in words ("techno, 97 bpm") far better than the networks follow its control token against a
    prefix that implies another tempo (docs/mini.md).
    """
    mentioned = facts_of_words(prompt)
    missing = {name for name, value in controls.items() if mentioned.get(name) != value}
    phrases = [f"{controls['tempo_bpm']:g} bpm"] if "tempo_bpm" in missing else []
    if missing & {"key", "mode"}:
        phrases.append(" ".join(["in", *(controls[name] for name in ("key", "mode") if name in controls)]))
    if "metre" in missing:
        phrases.append(f"in {controls['metre']}")
    if not phrases:
        return prompt
    return tuple(
        replace(part, text=", ".join([part.text, *phrases])) if part.text and part.weight > 0 else part
        for part in prompt_parts(prompt)
    )


def read_audio(sound: Any, role: str, wanted: AudioFormat) -> Float32[np.ndarray, " T *C"]:
    """Float32 (T,) or (T, C) in the wanted format, from a sound file, or from an array that is in it already.

    `role` names the sound in the error. A mono array fills both channels.

    Raises:
        UserError: it cannot be read, has other channels, is not finite or far too loud, or is shorter than one second;
            a file is longer than `MAX_SECONDS`.
    """
    rate = wanted.sample_rate
    if not is_array(sound):
        _check_duration(sound, role)
    wave = np.asarray(sound) if is_array(sound) else audio.read(sound, rate, wanted.channels)
    if not np.issubdtype(wave.dtype, np.floating):
        raise UserError(f"{role} of {wave.dtype}; samples must be floats in [-1, 1]")
    channels = "mono" if wanted.channels == 1 else "(T,) or (T, 2)"
    fits = wave.ndim == 1 or wave.shape[1:] == (wanted.channels,) != (1,)
    label = f"shape {wave.shape}" if is_array(sound) else f"{sound}, {len(wave)} samples"
    if not fits or not np.isfinite(wave).all() or len(wave) < rate:
        raise UserError(
            f"{role} of {label}; it must be {channels}, finite and at least a second at {rate / 1000:g} kHz"
        )
    peak = float(np.abs(wave).max())
    if peak > audio.LOUDEST_SAMPLE:
        raise UserError(f"{role} of {label}: samples of up to {peak:g}; they must be floats in [-1, 1]")
    wave = wave.astype(np.float32)
    return wave if wave.ndim == 2 or wanted.channels == 1 else np.repeat(wave[:, None], 2, axis=1)


def _check_duration(path: str | Path, role: str) -> None:
    """Raises `UserError` for a file that is too long, before its samples take memory."""
    seconds = audio.seconds(path)
    if seconds > MAX_SECONDS:
        raise UserError(f"{role} of {path} lasts {seconds:.1f} s; it must be at most {MAX_SECONDS} s long")


def _require_prompt(request: Request) -> None:
    if not request.scenes or request.scenes[0][0] > 0:
        raise UserError("there is no prompt; describe the music in a few words")


def tokenize_prompt(prompt: str, length: int, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask (1, `length`) of the word pieces of a text. Raises `UserError` if it has more."""
    pieces = text.token_count(prompt, tokenizer)
    if pieces > length:
        raise UserError(
            f"prompt {prompt[:40]!r}... has {pieces - 2} word pieces; at most {length - 2} fit, shorten it"
        )
    return text.tokenize([prompt], length, tokenizer)
