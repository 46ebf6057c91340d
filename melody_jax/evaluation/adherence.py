"""Does generated music follow its prompt? 16 groups, prompts from the test split, a judge trained on composed audio.

The stages of the cascade are swapped for ground truth one after the other, so that a loss has an address:

    truth    the composed piece itself, rendered
    vae      its latents, decoded
    dpd      its semantic tokens (and prefix), through the diffusion and the decoder
    lm       its MuLan music prefix, through the language model and all after it
    text     the prompt, through everything: what a user hears
    shuffled the same clips as `text`, each judged against another group's prompt

`melody diagnose` is the command for it.
"""

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from melody_jax.composer import soundfont
from melody_jax.composer.captions import captions
from melody_jax.composer.compose import compose
from melody_jax.composer.phrases.genres import GENRES
from melody_jax.composer.phrases.instruments import NAMES
from melody_jax.composer.piece import Piece
from melody_jax.composer.render import render
from melody_jax.data.records import write_bytes
from melody_jax.errors import UserError
from melody_jax.evaluation.group_judge import log_mel_statistics
from melody_jax.models import mulan, tokenizer, vae
from melody_jax.models.functional import Params
from melody_jax.sampling import windows
from melody_jax.sampling.cascade import Melody
from melody_jax.sampling.request import make_requests

SECONDS = 10.24
"""Length of the pieces that prompts describe: one window of the shipped model."""


@dataclass(frozen=True)
class Group:
    """Music that shares a genre or a lead instrument; exactly one of the two is set."""

    genre: str | None = None
    lead: str | None = None

    @property
    def name(self) -> str:
        """What the group is called in tables."""
        return self.genre or str(self.lead)

    @property
    def words(self) -> tuple[str, ...]:
        """Any of these in a prompt asks for the group."""
        if self.genre:
            return (self.genre, *GENRES[self.genre].mass)
        return NAMES[self.name][:3]  # the later ones are shared with other instruments


GROUPS = (
    *(Group(genre=name) for name in ("solo piano", "jazz", "metal", "techno", "ambient", "orchestral", "reggae",
                                     "chiptune", "drum and bass", "baroque")),
    *(Group(lead=name) for name in ("acoustic guitar", "violin", "flute", "saxophone", "accordion", "music box")),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One line of the committed list: the text, the group it asks for, and the test piece whose caption it is."""

    group: str
    text: str
    seed: int
    tempo_bpm: float
    rhythmic: bool


def pieces(group: Group, split: str, seed: int, seconds: float) -> Iterator[Piece]:
    """Endless pieces of the group from a split. A lead's pieces are of genres that are no groups themselves."""
    taken = {other.genre for other in GROUPS if other.genre}
    while True:
        piece = compose(seed, seconds, genre=group.genre, lead=group.lead, split=split)
        seed += 1
        if group.genre or piece.facts.genre not in taken:
            yield piece


def prompts(group: Group, count: int, seed: int, seconds: float) -> list[Prompt]:
    """Prompts of the test split: of each piece the first caption that names the group's genre or instrument."""
    chosen: list[Prompt] = []
    for piece in pieces(group, "test", seed, seconds):
        named = [
            c for c in captions(piece.facts, piece.seed, 12) if any(word in c.lower() for word in group.words)
        ]
        if named and len(named[0].split()) <= 40:
            facts = piece.facts
            chosen.append(Prompt(group=group.name, text=named[0], seed=piece.seed, tempo_bpm=facts.tempo_bpm,
                                 rhythmic=facts.rhythmic))  # fmt: skip
        if len(chosen) == count:
            return chosen
    raise AssertionError("unreachable: pieces() never ends")


def read_prompts(file: Path) -> list[Prompt]:
    """A list of prompts, one JSON object a line. Raises `UserError` for a file that is missing or anything else."""
    try:
        found = [Prompt(**json.loads(line)) for line in file.read_text("utf-8").splitlines()]
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: not a list of composed prompts ({error})") from None
    names = {group.name for group in GROUPS}
    if not found or any(prompt.group not in names for prompt in found):
        raise UserError(f"{file}: no prompts, or of groups that are none of {', '.join(sorted(names))}")
    return found


def write_prompts(file: Path, count: int = 10) -> None:
    """Writes the list that is committed: `count` prompts a group, made from pieces of the test split."""
    lines = [
        json.dumps(dataclasses.asdict(prompt))
        for i, group in enumerate(GROUPS)
        for prompt in prompts(group, count, 90_000_000 + 10_000 * i, SECONDS)
    ]
    write_bytes(file, ("\n".join(lines) + "\n").encode())


def judge_data(cache: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`log_mel_statistics` (N, F) of `count` composed clips of each group, of the train split, and their groups (N,).

    Rendered once, by two processes, and kept in `cache`.
    """
    file = cache / f"features-{count}.npz"
    labels = np.repeat(np.arange(len(GROUPS)), count)
    if not file.exists():
        jobs = [(int(group), i) for i, group in enumerate(labels)]
        with ProcessPoolExecutor(2, get_context("spawn")) as pool:
            rows = list(
                tqdm(pool.map(_judge_features, jobs, chunksize=8), total=len(jobs), desc="judge", unit="clip")
            )
        buffer = io.BytesIO()
        np.savez(buffer, features=np.stack(rows))
        cache.mkdir(parents=True, exist_ok=True)
        write_bytes(file, buffer.getvalue())
    return np.load(file, allow_pickle=False)["features"], labels


def _judge_features(job: tuple[int, int]) -> np.ndarray:
    group, number = job
    piece = next(pieces(GROUPS[group], "train", 10_000_019 + 1_000 * number, SECONDS))
    return log_mel_statistics(render_with(piece, "train", number))


def ground_truth(prompt: Prompt, number: int, samples: int) -> np.ndarray:
    """The test piece that a prompt describes, (samples,); `number` picks the test split's SoundFont."""
    group = next(group for group in GROUPS if group.name == prompt.group)
    piece = compose(prompt.seed, SECONDS, genre=group.genre, lead=group.lead, split="test")
    return render_with(piece, "test", number)[:samples]


def render_with(piece: Piece, split: str, number: int) -> np.ndarray:
    """The piece (samples,) with one of the split's SoundFonts, picked by `number`, or with the built-in synthesiser."""
    fonts = sorted(soundfont.installed(split).items())
    return render(piece, fonts[number % len(fonts)][1] if fonts else None)


def swap_stages(
    melody: Melody,
    waves: np.ndarray,
    texts: Sequence[str],
    seed: int = 0,
    steps: int = 5,
    guidance_scale: float = 2.5,
    lm_guidance_scale: float = 2.0,
    temperature: float = 1.1,
) -> dict[str, np.ndarray]:
    """Clips (B, T) for "vae", "dpd", "lm" and "text", given true clips (B, T) of one window and their prompts.

    `melody` must hold the "tokenizer" too, see `sampling.cascade.load(..., networks=...)`.
    """
    params, configs = melody.params, melody.configs
    settings = {"steps": steps, "guidance_scale": guidance_scale, "lm_guidance_scale": lm_guidance_scale,
                "temperature": temperature, "seconds": melody.window_seconds, "seed": seed}  # fmt: skip
    (batch,) = melody.plan(make_requests(texts, settings))
    prefix, tokens, latents = _features(params, tuple(configs.items()), jnp.asarray(waves))
    controls = melody.controls_at(batch)([0.0] * len(texts))._replace(prefix_tokens=prefix)
    keys = windows.item_keys(controls)
    decode = partial(windows.latents_to_wave, params["vae"], configs["vae"])
    diffuse = partial(_diffuse, params["dpd"], batch.config, controls)
    drawn = _write(params["lm"], batch.config, controls, keys)
    return {
        "vae": np.asarray(decode(latents)),
        "dpd": np.asarray(decode(diffuse(tokens, keys))),
        "lm": np.asarray(decode(diffuse(drawn, keys))),
        "text": np.stack(melody.run(batch.requests)),
    }


_diffuse = partial(jax.jit, static_argnums=1)(windows.tokens_to_latents)
_write = partial(jax.jit, static_argnums=1)(windows.prefix_to_tokens)


@partial(jax.jit, static_argnums=1)
def _features(
    params: dict[str, Params], configs: tuple[tuple[str, Any], ...], audio: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prefix tokens, semantic tokens and latents of true clips (B, T)."""
    config = dict(configs)
    embedding = mulan.embed_music(params["mulan"], config["mulan"], audio)
    prefix = mulan.quantise(params["mulan"], config["mulan"], embedding)
    semantic_tokens = tokenizer.tokenize(params["tokenizer"], config["tokenizer"], audio)
    return prefix, semantic_tokens, vae.encode(params["vae"], config["vae"], audio)
