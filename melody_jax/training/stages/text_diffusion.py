"""Training of diffusions that follow words: Noise2Music's generator and upsampler, Moûsai's generator.

Noise2Music (arXiv 2302.03917) makes an intermediate representation from a text, and refines it in a cascade:

    generator          word pieces -> latents of a low rate, the means of `ratio` latents of an autoencoder
    upsampler          word pieces, latents of the low rate with some noise -> latents of the autoencoder's rate
    latent_generator   word pieces -> latents of a diffusion codec, as in Moûsai (arXiv 2301.11757)

With log mels as latents (`VAEConfig.mel`) the first two are its spectrogram route, and the autoencoder's decoder is its
vocoder.

The text tower and the encoder are released networks that do not learn: `params["frozen"]`.

B batch, T samples, L latents, D latent width, U word pieces.
"""

import dataclasses
from collections.abc import Iterator
from types import ModuleType
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from melody_jax import diffusion, parameterisation, release
from melody_jax.audio_format import AudioFormat
from melody_jax.config_json import network_difference
from melody_jax.errors import UserError
from melody_jax.models import denoiser, diffusion_codec, functional, text_tower, vae
from melody_jax.models.conditioning import LowerFrames, TextCondition, WordPieces
from melody_jax.models.denoiser import DenoiserConfig
from melody_jax.models.diffusion_codec import DiffusionCodecConfig
from melody_jax.models.functional import Params
from melody_jax.models.text_tower import TextConfig, TextEncoder
from melody_jax.models.unet1d import UNet1DConfig
from melody_jax.models.vae import VAEConfig
from melody_jax.roles import Roles
from melody_jax.training.angle_errors import error_at_angles
from melody_jax.training.stage import Batch, Metrics, Stage, loss_gradients
from melody_jax.training.text_tokenizer import check_tokenizer

Part = Literal["generator", "upsampler", "latent_generator"]


class Draws(NamedTuple):
    """All random quantities of a step."""

    has_condition: Bool[Array, " B"]
    """Items that keep their text."""
    angle: Float[Array, "B L"]
    """Radians."""
    noise: Float[Array, "B L D"]
    lower_angle: Float[Array, " B"]
    """Radians; for the upsampler only."""
    lower_noise: Float[Array, "B L D"]
    """For the upsampler only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextDiffusionStage(Stage):
    """The `generator`, `upsampler` or `latent_generator` stage, on audio with captions."""

    batch: ClassVar[str] = "audio_text"

    part: Part = "generator"
    """Which of the networks."""
    model: DenoiserConfig = dataclasses.field(
        default_factory=lambda: UNet1DConfig(latent_dim=80, frames=256, chunks=1, text=TextCondition())
    )
    """The network: any backbone with `text`; of the upsampler, with `lower_ratio` too."""
    ratio: int = 4
    """Latents of the autoencoder per frame of the generator; 1: there is no upsampler."""
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    """The text tower."""
    autoencoder: VAEConfig | DiffusionCodecConfig = dataclasses.field(
        default_factory=lambda: VAEConfig(latent_width=80, mel=True)
    )
    """The autoencoder whose latents are written."""
    networks: str = ""
    """Folder with the released mulan, whose text tower is used, and vae, or dmae; empty: fresh ones, for tests."""
    condition_dropout: float = 0.1
    """Share of items trained without their text, for classifier-free guidance (the paper's)."""

    def __post_init__(self) -> None:
        if self.part not in get_args(Part):
            raise UserError(f"part is {self.part!r}; it must be one of {', '.join(get_args(Part))}")
        if not 0 <= self.condition_dropout < 1:
            raise UserError(
                f"condition_dropout is {self.condition_dropout}; it must be at least 0 and below 1"
            )
        self._check_autoencoder()
        self._check_model()

    def _check_autoencoder(self) -> None:
        """Raises `UserError` unless the autoencoder and the ratio are those of the part."""
        codec = self.autoencoder
        is_latent = self.part == "latent_generator"
        if isinstance(codec, VAEConfig) == is_latent:
            kind = (
                "a diffusion codec (models/diffusion_codec.py)"
                if is_latent
                else "an autoencoder (models/vae.py)"
            )
            raise UserError(
                f"the {self.part} writes latents of {kind}; autoencoder is {type(codec).__name__}"
            )
        if isinstance(codec, VAEConfig) and codec.quantiser:
            raise UserError("the autoencoder has a quantiser; a diffusion writes latents without one")
        if self.ratio < 1 or (is_latent and self.ratio != 1):
            raise UserError(f"ratio is {self.ratio}; it must be at least 1, and 1 for a latent_generator")

    def _check_model(self) -> None:
        """Raises `UserError` unless the network has the shape of the part, and nothing that would not be used."""
        model = self.model
        text_width = model.text.width if model.text else None
        if text_width != self.text.width:
            raise UserError(f"model.text.width is {text_width}; the text tower has {self.text.width}")
        is_upsampler = self.part == "upsampler"
        wanted: dict[str, Any] = {
            "latent_dim": self.autoencoder.latent_width,
            "lower_ratio": self.ratio if is_upsampler else 0,
            "lower_dim": 0,
            "chunks": 1,
            "prefix_conditioning": False,
            "controls": None,
            "guidance_range": None,
        }
        for name, value in wanted.items():
            if getattr(model, name) != value:
                raise UserError(f"model.{name} is {getattr(model, name)}; this {self.part} needs {value}")
        if is_upsampler and model.frames % self.ratio:
            raise UserError(
                f"model.frames is {model.frames}; it must be a multiple of the ratio, {self.ratio}"
            )

    @property
    def name(self) -> str:
        """The network's name, that of the part."""
        return self.part

    @property
    def roles(self) -> Roles:
        """The role of every parameter, with the structure of what `init` returns."""
        encoder = _without_decoder(self._codec.roles(self.autoencoder))
        frozen = {"text": functional.roles(TextEncoder, self.text), "autoencoder": encoder}
        return {"model": denoiser.roles(self.model), "frozen": frozen}

    @property
    def audio_format(self) -> AudioFormat:
        """Sample rate and channels of the batches."""
        return self.autoencoder.audio_format

    @property
    def vocabulary(self) -> int:
        """Word pieces of the text tower."""
        return self.text.vocab_size

    def check_tokenizer(self, tokenizer: str) -> None:
        """Raises `UserError` if captions would be read with another tokenizer than that of the released mulan."""
        check_tokenizer(self.networks, tokenizer)

    @property
    def _codec(self) -> ModuleType:
        """The module of the autoencoder."""
        return vae if isinstance(self.autoencoder, VAEConfig) else diffusion_codec

    @property
    def _networks(self) -> tuple[str, str]:
        """The names of the released networks that the stage reads: text tower and autoencoder."""
        return "mulan", "vae" if isinstance(self.autoencoder, VAEConfig) else "dmae"

    @property
    def hashes(self) -> dict[str, str]:
        """The hashes of the frozen networks. Raises `UserError` if there are none."""
        if not self.networks:
            names = " and ".join(self._networks)
            raise UserError(f"stage.networks is missing: the folder of the released {names} to train with")
        return {name: release.network_hash(self.networks, name) for name in self._networks}

    def init(self, key: PRNGKeyArray) -> Params:
        """Fresh parameters, float32, and the frozen networks."""
        return {"model": denoiser.init(self.model, key), "frozen": self._frozen(jax.random.fold_in(key, 1))}

    def _frozen(self, key: PRNGKeyArray) -> Params:
        if not self.networks:
            text = text_tower.init(self.text, key)
            return {"text": text, "autoencoder": _without_decoder(self._codec.init(self.autoencoder, key))}
        mulan_name, codec_name = self._networks
        mulan, mulan_config, _ = release.read_network(self.networks, mulan_name)
        codec, codec_config, _ = release.read_network(self.networks, codec_name)
        pairs = {"text": (mulan_config.text, self.text), "autoencoder": (codec_config, self.autoencoder)}
        for what, (config, wanted) in pairs.items():
            if fields := network_difference(config, wanted):
                name, (released, given) = next(iter(fields.items()))
                raise UserError(
                    f"{self.networks} has another {what} than stage.{what}: {name} is {released} there and {given} here"
                )
        frozen = {"text": mulan["text"]["encoder"], "autoencoder": _without_decoder(codec)}
        return jax.tree.map(jnp.asarray, frozen)

    def gradients(
        self, params: Params, batch: Batch, key: PRNGKeyArray, step: Int[Array, ""]
    ) -> tuple[Params, Metrics]:
        """Gradients of the velocity error on {"audio", "text_ids" (B, U), "text_mask"}."""

        def loss(trained: Params, batch: Batch, key: PRNGKeyArray) -> tuple[Array, Metrics]:
            latents, words = self._inputs(params["frozen"], batch)
            draws = self._draw(latents, key)
            error = self._errors(trained["model"], latents, words, draws)
            weight = parameterisation.loss_weight(self.model.objective, self.model.sigma_data, draws.angle)
            return (error.mean(axis=-1) * weight).mean(), {}

        return loss_gradients(loss, {"model": params["model"]}, batch, key)

    def _inputs(self, frozen: Params, batch: Batch) -> tuple[Array, WordPieces]:
        """Latents (B, L, D) at the autoencoder's rate, and the outputs of the text tower."""
        audio = jnp.asarray(batch["audio"], jnp.float32)
        latents = self._codec.encode(frozen["autoencoder"], self.autoencoder, audio)
        frames = latents.shape[1] if self.part == "upsampler" else latents.shape[1] / self.ratio
        if frames != self.model.frames:
            samples = (
                self.model.frames * self.autoencoder.hop * (1 if self.part == "upsampler" else self.ratio)
            )
            raise UserError(
                f"data.crop_samples is {audio.shape[1]}; {self.model.frames} frames of the {self.part} are {samples}"
            )
        length = batch["text_ids"].shape[1]
        if self.model.text is None or length != self.model.text.length:
            wanted = self.model.text and self.model.text.length
            raise UserError(f"data.text_length is {length}; model.text.length is {wanted}: set them alike")
        pieces = text_tower.encode_pieces(frozen["text"], self.text, batch["text_ids"], batch["text_mask"])
        return latents, WordPieces(pieces, batch["text_mask"])

    def _draw(self, latents: Array, key: PRNGKeyArray) -> Draws:
        """Each kind has its own key: a change of one leaves the others."""
        keys = jax.random.split(key, 5)
        count, length, width = latents.shape
        frames = self.model.frames
        angle = diffusion.sample_angles(keys[1], count, frames, self.model.chunks)
        return Draws(
            has_condition=jax.random.bernoulli(keys[0], 1 - self.condition_dropout, (count,)),
            angle=parameterisation.angle_from_noise_input(self.model.objective, self.model.sigma_data, angle),
            noise=jax.random.normal(keys[2], (count, frames, width)),
            lower_angle=self.model.lower_noise * jax.random.uniform(keys[3], (count,)),
            lower_noise=jax.random.normal(keys[4], (count, length // self.ratio, width)),
        )

    def _errors(
        self, model: Params, latents: Array, words: WordPieces, draws: Draws, has_condition: int | None = None
    ) -> Array:
        """Squared velocity errors (B, L, D); `has_condition` overrides that of `draws`, see `denoiser.velocity`."""
        low = lower_rate(latents, self.ratio)
        lower = None
        if self.part == "upsampler":
            noisy_low, _ = diffusion.corrupt(low, draws.lower_noise, draws.lower_angle[:, None])
            lower = LowerFrames(noisy_low, draws.lower_angle)
        clean = latents if self.part == "upsampler" else low
        noisy, target = diffusion.corrupt(clean, draws.noise, draws.angle)
        mask = draws.has_condition if has_condition is None else has_condition
        predicted = denoiser.velocity(
            model, self.model, noisy, draws.angle, None, mask, text=words, lower=lower
        )
        return (predicted - target) ** 2

    def evaluate(self, params: Params, batch: Batch, key: PRNGKeyArray) -> Metrics:
        """Velocity errors of a held-out batch.

        "loss" follows the text, "loss_null" does not, at the same angles; "loss_at_0.2", 0.6, 1.0 and 1.4 have all
        frames at that angle. An upsampler's condition has half of its largest noise.
        """
        latents, words = self._inputs(params["frozen"], batch)
        draws = self._draw(latents, key)
        draws = draws._replace(lower_angle=jnp.full_like(draws.lower_angle, self.model.lower_noise / 2))
        count = len(latents)

        def error(angle: Array, has_condition: int = count) -> Array:
            given = draws._replace(angle=angle)
            return self._errors(params["model"], latents, words, given, has_condition).mean()

        loss, at_angles = error_at_angles(error, draws.angle)
        return {"loss": loss, "loss_null": error(draws.angle, 0), **at_angles}

    def finish(self, model: Params, batches: Iterator[Any], key: PRNGKeyArray) -> tuple[Params, Metrics]:
        """Nothing is fitted after training."""
        return model, {}


def _without_decoder(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if name != "decoder"}


def lower_rate(latents: Float[Array, "B L D"], ratio: int) -> Float[Array, "B _ D"]:
    """Means of `ratio` latents, L a multiple of it."""
    batch, length, width = latents.shape
    return latents.reshape(batch, length // ratio, ratio, width).mean(axis=2)
