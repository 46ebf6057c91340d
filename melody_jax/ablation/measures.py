"""Measures of a trained diffusion on held-out clips: one number per clip.

A measure is a function from a `Probe` to arrays whose first axis is the clips. `METRICS` says which measure
each reported metric comes from and which direction is better. All arms are measured at the same angles with
the same noise.

  velocity      errors with one angle for the whole window, at eight angles evenly spaced over (0, pi/2), and with
                independent angles of four chunks, as in the paper's training
  continuation  the same with a clean first half of the window, on the second half alone
  resynthesis   clips sampled from the true tokens and decoded, compared with the decoded true latents

"SI-SNRi" (MeLoDy, arXiv 2305.15719, table 5, "between z and z_hat") is computed as the scale-invariant
signal-to-noise ratio of the clean latents that the velocity implies, minus that of the noisy input latents,
in dB, averaged over the angles. The L x D numbers of a window are one signal; its mean is removed.

Legend: N clips, L latent frames, D latent width, A angles, W windows, E embedding width.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from melody_jax import diffusion, guidance, release
from melody_jax.evaluation import reconstruction
from melody_jax.models import denoiser, mulan, vae
from melody_jax.models.channels import default_format
from melody_jax.models.functional import Params
from melody_jax.models.vae import VAEConfig
from melody_jax.training.stage import Batch

ANGLES = tuple((i + 0.5) / 8 * diffusion.HALF_PI for i in range(8))
"""Angles of `velocity` and `continuation`, radians."""
CHUNKS = 4
"""Chunks with independent angles in `velocity`, whatever number the arm was trained with."""
SAMPLING_STEPS = 10
GUIDANCE_SCALE = 2.5
RESYNTHESIS_WINDOWS = 2
"""Windows of each clip that `resynthesis` samples: decoding takes most of the time."""


SAMPLED = "sampled"
"""The one measure of a study that only samples."""


class Probe(NamedTuple):
    """A trained network with the data that it is measured on."""

    stage: Any
    """`DPDStage`."""
    model: Params
    """The averaged weights."""
    batches: Sequence[Batch]
    """Batches that each hold another window of every held-out clip, in the same order."""
    networks: str
    """Folder of the released networks that made the features: the decoder and MuLan."""
    quiet: bool = True
    """Show no progress bar."""

    def numbered(self, measure: str, count: int | None = None) -> Iterator[tuple[int, Batch]]:
        """(number, batch) of the first `count` batches, with a progress bar on a terminal."""
        batches = list(self.batches[:count])
        bar = tqdm(
            batches, desc=f"measuring {measure}", unit="batch", leave=False, disable=self.quiet or None
        )
        return enumerate(bar)


class Metric(NamedTuple):
    """A metric of the report."""

    measure: str
    """The measure it comes from: a name in `MEASURES`, or `SAMPLED` in a study that only samples."""
    title: str
    """Name in the report, with the unit."""
    better: Literal["lower", "higher"]
    """The direction that is better."""


METRICS = {
    "velocity_mse": Metric("velocity", "velocity MSE", "lower"),
    "velocity_mse_chunks": Metric("velocity", "velocity MSE at four chunk angles", "lower"),
    "si_snri": Metric("velocity", "SI-SNRi, dB", "higher"),
    "continuation_mse": Metric("continuation", "velocity MSE of a continuation", "lower"),
    "continuation_si_snri": Metric("continuation", "SI-SNRi of a continuation, dB", "higher"),
    "log_mel_l1": Metric("resynthesis", "log-mel L1 of sampled clips, nepers", "lower"),
    "mulan_similarity": Metric("resynthesis", "MuLan cosine between sampled and true clips", "higher"),
    "kernel_distance": Metric("resynthesis", "kernel distance to the true clips, MuLan", "lower"),
    "group_right": Metric(SAMPLED, "correct group, share of clips", "higher"),
    "tempo_right": Metric(SAMPLED, "correct tempo, share of clips with a beat", "higher"),
    "text_similarity": Metric(SAMPLED, "MuLan cosine between clip and prompt", "higher"),
    "prompt_kernel_distance": Metric(SAMPLED, "kernel distance to the described pieces, MuLan", "lower"),
    "prompt_kernel_distance_log_mel": Metric(
        SAMPLED, "kernel distance to the described pieces, log-mel statistics", "lower"
    ),
}
"""All metrics. The kernel distances have one value per set of clips, the others one per clip."""


def velocity(probe: Probe) -> dict[str, np.ndarray]:
    """Errors at shared angles, (N,) averaged and (N, A) per angle, and at the angles of four chunks, (N,)."""
    errors = [
        _velocity(probe.stage, probe.model, batch, number) for number, batch in probe.numbered("velocity")
    ]
    mse, si_snri, chunks = (np.mean(np.stack(values), axis=0) for values in zip(*errors, strict=True))
    return {
        "velocity_mse": mse.mean(axis=1),
        "si_snri": si_snri.mean(axis=1),
        "velocity_mse_chunks": chunks,
        "velocity_mse_by_angle": mse,
        "si_snri_by_angle": si_snri,
    }


@partial(jax.jit, static_argnums=0)
def _velocity(stage: Any, model: Params, batch: Batch, number: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """MSE (N, A) and SI-SNRi (N, A) at shared angles; MSE (N,) at random chunk angles."""
    noise_key, angle_key = jax.random.split(jax.random.fold_in(jax.random.key(0), number))
    clips, frames, _ = batch["latents"].shape
    noise = jax.random.normal(noise_key, batch["latents"].shape)
    drawn = diffusion.sample_angles(angle_key, clips, frames, CHUNKS)
    angles = jnp.stack([drawn, *(jnp.full_like(drawn, angle) for angle in ANGLES)])
    mse, si_snri = jax.lax.map(partial(_errors, stage, model, batch, noise, first=0), angles)
    return mse[1:].T, si_snri[1:].T, mse[0]


def continuation(probe: Probe) -> dict[str, np.ndarray]:
    """Errors (N,) on the second half of windows whose first half is clean context."""
    errors = [
        _continuation(probe.stage, probe.model, batch, number)
        for number, batch in probe.numbered("continuation")
    ]
    mse, si_snri = (np.mean(np.stack(values), axis=0).mean(axis=1) for values in zip(*errors, strict=True))
    return {"continuation_mse": mse, "continuation_si_snri": si_snri}


@partial(jax.jit, static_argnums=0)
def _continuation(stage: Any, model: Params, batch: Batch, number: int) -> tuple[jax.Array, jax.Array]:
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), number), batch["latents"].shape)
    clips, frames, _ = noise.shape
    is_noisy = jnp.broadcast_to(jnp.arange(frames) >= frames // 2, (clips, frames))
    angles = jnp.stack([jnp.where(is_noisy, angle, 0.0) for angle in ANGLES])
    mse, si_snri = jax.lax.map(partial(_errors, stage, model, batch, noise, first=frames // 2), angles)
    return mse.T, si_snri.T


def _errors(
    stage: Any, model: Params, batch: Batch, noise: jax.Array, angle: jax.Array, first: int
) -> tuple[jax.Array, jax.Array]:
    """Velocity MSE (N,) and SI-SNRi (N,) of the implied clean latents at `angle` (N, L), from frame `first`
    on."""
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
    """The velocity; the first `has_condition` items have a condition (None: as `_conditioned_items` says)."""
    tokens = batch["semantic_tokens"]
    if has_condition is None:
        has_condition = _conditioned_items(stage, len(tokens))
    return denoiser.velocity(model, stage.model, noisy, angle, tokens, has_condition, batch["prefix_tokens"])


def _conditioned_items(stage: Any, clips: int) -> int:
    """Number of items with a condition: none for a network that never had one in training."""
    return 0 if stage.condition_dropout >= 1 else clips


def si_snr(estimate: jax.Array, reference: jax.Array) -> jax.Array:
    """Scale-invariant signal-to-noise ratio (N,) in dB of (N, L, D): each item is one signal, its mean
    removed."""
    estimate, reference = (x - x.mean(axis=(1, 2), keepdims=True) for x in (estimate, reference))
    gain = (estimate * reference).sum(axis=(1, 2)) / (jnp.square(reference).sum(axis=(1, 2)) + 1e-12)
    signal = gain[:, None, None] * reference
    power = jnp.square(signal).sum(axis=(1, 2))
    error = jnp.square(estimate - signal).sum(axis=(1, 2))
    return 10 * jnp.log10((power + 1e-12) / (error + 1e-12))


def resynthesis(probe: Probe) -> dict[str, np.ndarray]:
    """Clips sampled from the true tokens in 10 guided steps, compared with the originals.

    Returns:
        Log-mel L1 and MuLan cosine, (N,) each, and the embeddings (N, W, E) of the sampled and the original
        windows for the kernel distance, W = `RESYNTHESIS_WINDOWS`.
    """
    decoder, decoder_config, _ = release.load_network(probe.networks, "vae")
    encoder, encoder_config, _ = release.load_network(probe.networks, "mulan")
    columns: dict[str, list[np.ndarray]] = {}
    for number, batch in probe.numbered("resynthesis", RESYNTHESIS_WINDOWS):
        sampled = _sample(probe.stage, probe.model, batch, number)
        true_wave = np.asarray(_decode(decoder, decoder_config, jnp.asarray(batch["latents"])))
        wave = np.asarray(_decode(decoder, decoder_config, sampled))
        true_embedding = np.asarray(_embed(encoder, encoder_config, true_wave))
        embedding = np.asarray(_embed(encoder, encoder_config, wave))
        distance = np.abs(reconstruction.log_mel(wave) - reconstruction.log_mel(true_wave))
        rows = {
            "log_mel_l1": distance.mean(axis=(1, 2)),
            "mulan_similarity": (true_embedding * embedding).sum(axis=1),
            "embeddings": embedding,
            "true_embeddings": true_embedding,
        }
        for name, values in rows.items():
            columns.setdefault(name, []).append(values)
    stacked = {name: np.stack(values, axis=1) for name, values in columns.items()}
    return {name: values if values.ndim == 3 else values.mean(axis=1) for name, values in stacked.items()}


@partial(jax.jit, static_argnums=1)
def _decode(params: Params, config: VAEConfig, latents: jax.Array) -> jax.Array:
    """The waveforms (B, T) of latents, as MuLan hears them."""
    return default_format(vae.decode(params, config, latents), config.audio_format)


_embed = partial(jax.jit, static_argnums=1)(mulan.embed_music)


@partial(jax.jit, static_argnums=0)
def _sample(stage: Any, model: Params, batch: Batch, number: int) -> jax.Array:
    """Latents (N, L, D) sampled from the true tokens, half of every doubled batch without the condition."""
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(2), number), batch["latents"].shape)
    clips = len(noise)
    doubled = jax.tree.map(lambda rows: jnp.concatenate([rows, rows]), batch)

    def guided(noisy: jax.Array, angle: jax.Array) -> jax.Array:
        noisy = jnp.concatenate([noisy, noisy])
        angle = jnp.concatenate([angle, angle])
        predicted = _predict(
            stage, model, doubled, noisy, angle, has_condition=_conditioned_items(stage, clips)
        )
        return guidance.guide(predicted[:clips], predicted[clips:], GUIDANCE_SCALE)

    return diffusion.sample(guided, noise, diffusion.angle_steps("paper", SAMPLING_STEPS))


MEASURES: dict[str, Callable[[Probe], dict[str, np.ndarray]]] = {
    "velocity": velocity,
    "continuation": continuation,
    "resynthesis": resynthesis,
}
"""Measures by name."""
