"""What is measured of a trained diffusion on held-out clips, one number a clip.

A measure is a function of a `Probe` that returns arrays whose first axis is the clips; `METRICS` says which measure
each reported number is from, and which way is better. All arms are measured at the same angles and the same noise.

  velocity      errors with the whole window at one angle, at eight angles evenly spaced over (0, pi/2), and with
                independent angles of four chunks, as the paper trains
  continuation  the same with the first half of the window clean, on the second half alone
  heard         clips sampled from the true tokens and decoded, beside the true latents decoded

"SI-SNRi" (MeLoDy, table 5, "between z and z_hat") is taken as: the scale-invariant signal-to-noise ratio of the clean
latents that the velocity implies, less that of the noisy latents that went in, in dB, mean over the angles. A window's
L x D numbers are one signal, its mean taken out.

Legend: N clips, L latent frames, D latent width, A angles.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from melody_jax import diffusion, release
from melody_jax.evaluation import reconstruction
from melody_jax.models import denoiser, mulan, vae
from melody_jax.models.functional import Params
from melody_jax.training.stage import Batch

ANGLES = tuple((i + 0.5) / 8 * diffusion.HALF_PI for i in range(8))
"""Angles of `velocity` and `continuation`, radians."""
CHUNKS = 4
"""Chunks with angles of their own in `velocity`, whatever the arm was trained with."""
SAMPLING_STEPS, GUIDANCE_SCALE = 10, 2.5
HEARD_WINDOWS = 2
"""Windows of each clip that `heard` samples: decoding is what takes time."""


class Probe(NamedTuple):
    """A trained network and what it is measured on."""

    stage: Any
    """`DPDStage`."""
    model: Params
    """Its averaged weights."""
    batches: Sequence[Batch]
    """Each holds another window of every held-out clip, in the same order."""
    networks: str
    """Folder of the released networks that made the features: the decoder, and MuLan, which listens."""


class Metric(NamedTuple):
    """A number in the report."""

    measure: str
    """Which measure it is from: a name in `MEASURES`, or "sampled" of a sampling study."""
    title: str
    """What it is called, with its unit."""
    better: Literal["lower", "higher"]
    """Which way is better."""


METRICS = {
    "velocity_mse": Metric("velocity", "velocity MSE", "lower"),
    "velocity_mse_chunks": Metric("velocity", "velocity MSE at four chunk angles", "lower"),
    "si_snri": Metric("velocity", "SI-SNRi, dB", "higher"),
    "continuation_mse": Metric("continuation", "velocity MSE of a continuation", "lower"),
    "continuation_si_snri": Metric("continuation", "SI-SNRi of a continuation, dB", "higher"),
    "log_mel_l1": Metric("heard", "log-mel L1 of sampled clips, nepers", "lower"),
    "mulan_similarity": Metric("heard", "MuLan cosine of sampled and true clips", "higher"),
    "frechet": Metric("heard", "Fréchet distance to the true clips, MuLan", "lower"),
    "group_right": Metric("sampled", "group right by the judge, share", "higher"),
    "tempo_right": Metric("sampled", "tempo right where there is a beat, share", "higher"),
    "text_similarity": Metric("sampled", "MuLan cosine of clip and prompt", "higher"),
    "prompt_frechet": Metric("sampled", "Fréchet distance to the described pieces, MuLan", "lower"),
}
"""Everything that a study can report. The Fréchet distances are of all clips together, the others of each clip."""


def velocity(probe: Probe) -> dict[str, np.ndarray]:
    """Errors at shared angles (their mean, and (N, A) each) and at the angles of four chunks."""
    found = [_velocity(probe.stage, probe.model, batch, number) for number, batch in enumerate(probe.batches)]
    mse, si_snri, chunks = (np.mean(np.stack(values), axis=0) for values in zip(*found, strict=True))
    return {
        "velocity_mse": mse.mean(axis=1),
        "si_snri": si_snri.mean(axis=1),
        "velocity_mse_chunks": chunks,
        "velocity_mse_by_angle": mse,
        "si_snri_by_angle": si_snri,
    }


@partial(jax.jit, static_argnums=0)
def _velocity(stage: Any, model: Params, batch: Batch, number: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """MSE (N, A), SI-SNRi (N, A) at shared angles; MSE (N,) at drawn chunk angles."""
    noise_key, angle_key = jax.random.split(jax.random.fold_in(jax.random.key(0), number))
    clips, frames, _ = batch["latents"].shape
    noise = jax.random.normal(noise_key, batch["latents"].shape)
    drawn = diffusion.sample_angles(angle_key, clips, frames, CHUNKS)
    angles = jnp.stack([drawn, *(jnp.full_like(drawn, angle) for angle in ANGLES)])
    mse, si_snri = jax.lax.map(partial(_errors, stage, model, batch, noise, first=0), angles)
    return mse[1:].T, si_snri[1:].T, mse[0]


def continuation(probe: Probe) -> dict[str, np.ndarray]:
    """Errors on the second half of windows whose first half is clean context."""
    found = [
        _continuation(probe.stage, probe.model, batch, number) for number, batch in enumerate(probe.batches)
    ]
    mse, si_snri = (np.mean(np.stack(values), axis=0).mean(axis=1) for values in zip(*found, strict=True))
    return {"continuation_mse": mse, "continuation_si_snri": si_snri}


@partial(jax.jit, static_argnums=0)
def _continuation(stage: Any, model: Params, batch: Batch, number: int) -> tuple[jax.Array, jax.Array]:
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), number), batch["latents"].shape)
    clips, frames, _ = noise.shape
    new = jnp.broadcast_to(jnp.arange(frames) >= frames // 2, (clips, frames))
    angles = jnp.stack([jnp.where(new, angle, 0.0) for angle in ANGLES])
    mse, si_snri = jax.lax.map(partial(_errors, stage, model, batch, noise, first=frames // 2), angles)
    return mse.T, si_snri.T


def _errors(
    stage: Any, model: Params, batch: Batch, noise: jax.Array, angle: jax.Array, first: int
) -> tuple[jax.Array, jax.Array]:
    """MSE (N,) of the velocity at `angle` (N, L) and SI-SNRi (N,) of the clean latents, both from frame `first` on."""
    latents = batch["latents"]
    noisy, target = diffusion.corrupt(latents, noise, angle)
    predicted = _predict(stage, model, batch, noisy, angle)
    clean = diffusion.velocity_to_clean(noisy, predicted, angle)
    mse = jnp.square(predicted - target)[:, first:].mean(axis=(1, 2))
    before, after = (si_snr(x[:, first:], latents[:, first:]) for x in (noisy, clean))
    return mse, after - before


def _predict(
    stage: Any,
    model: Params,
    batch: Batch,
    noisy: jax.Array,
    angle: jax.Array,
    has_condition: int | None = None,
) -> jax.Array:
    """The velocity; a network that never had a condition in training has none here."""
    tokens, prefix = batch["semantic_tokens"], batch["prefix_tokens"]
    if has_condition is None:
        has_condition = _with_condition(stage, len(tokens))
    return denoiser.velocity(model, stage.model, noisy, angle, tokens, has_condition, prefix)


def _with_condition(stage: Any, clips: int) -> int:
    return 0 if stage.condition_dropout >= 1 else clips


def si_snr(estimate: jax.Array, reference: jax.Array) -> jax.Array:
    """Scale-invariant signal-to-noise ratio (N,) in dB of (N, L, D): each item is one signal, its mean taken out."""
    estimate, reference = (x - x.mean(axis=(1, 2), keepdims=True) for x in (estimate, reference))
    gain = (estimate * reference).sum(axis=(1, 2)) / (jnp.square(reference).sum(axis=(1, 2)) + 1e-12)
    signal = gain[:, None, None] * reference
    power, error = jnp.square(signal).sum(axis=(1, 2)), jnp.square(estimate - signal).sum(axis=(1, 2))
    return 10 * jnp.log10((power + 1e-12) / (error + 1e-12))


def heard(probe: Probe) -> dict[str, np.ndarray]:
    """Clips made from their own tokens in 10 guided steps: how far they sound from their originals.

    Also the embeddings (N, W, E) of `HEARD_WINDOWS` windows, and of the originals, for the Fréchet distance.
    """
    decoder, decoder_config, _ = release.load_network(probe.networks, "vae")
    ear, ear_config, _ = release.load_network(probe.networks, "mulan")
    found: dict[str, list[np.ndarray]] = {}
    for number, batch in enumerate(probe.batches[:HEARD_WINDOWS]):
        waves = [
            np.asarray(_decode(decoder, decoder_config, latents))
            for latents in (jnp.asarray(batch["latents"]), _sample(probe.stage, probe.model, batch, number))
        ]
        true, made = (np.asarray(_embed(ear, ear_config, wave)) for wave in waves)
        distance = np.abs(reconstruction.log_mel(waves[1]) - reconstruction.log_mel(waves[0])).mean(
            axis=(1, 2)
        )
        rows = {"log_mel_l1": distance, "mulan_similarity": (true * made).sum(axis=1)}
        for name, values in (rows | {"embeddings": made, "true_embeddings": true}).items():
            found.setdefault(name, []).append(values)
    stacked = {name: np.stack(values, axis=1) for name, values in found.items()}
    return {name: values if values.ndim == 3 else values.mean(axis=1) for name, values in stacked.items()}


_decode = partial(jax.jit, static_argnums=1)(vae.decode)
_embed = partial(jax.jit, static_argnums=1)(mulan.embed_music)


@partial(jax.jit, static_argnums=0)
def _sample(stage: Any, model: Params, batch: Batch, number: int) -> jax.Array:
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(2), number), batch["latents"].shape)
    clips = len(noise)
    doubled = jax.tree.map(lambda rows: jnp.concatenate([rows, rows]), batch)

    def guided(noisy: jax.Array, angle: jax.Array) -> jax.Array:
        both = [jnp.concatenate([x, x]) for x in (noisy, angle)]
        predicted = _predict(stage, model, doubled, *both, has_condition=_with_condition(stage, clips))
        return diffusion.guide(predicted[:clips], predicted[clips:], GUIDANCE_SCALE)

    return diffusion.sample(guided, noise, diffusion.angle_steps("paper", SAMPLING_STEPS))


MEASURES: dict[str, Callable[[Probe], dict[str, np.ndarray]]] = {
    "velocity": velocity,
    "continuation": continuation,
    "heard": heard,
}
"""Measures by name."""
