"""The networks of the systems other than MeLoDy at the size of the tests."""

from dataclasses import replace
from typing import Any

from helpers.musiclm import audiolm_networks, musiclm_networks
from helpers.stages import STAGES
from melody_jax.models import diffusion_codec, mulan, vae
from melody_jax.models.conditioning import TextCondition


def tiny_configs(system: str) -> dict[str, Any]:
    """Network of a system -> its config."""
    if system in ("musiclm", "audiolm"):
        networks = {"musiclm": musiclm_networks, "audiolm": audiolm_networks}[system]()
        return {name: config for name, (_, config) in networks.items()}
    text = TextCondition(width=mulan.TINY.text.width, length=16)
    diffusions = ("latent_generator",) if system == "mousai" else ("generator", "upsampler")
    configs = {name: replace(STAGES[name].model, text=text) for name in diffusions}
    autoencoder = {"dmae": diffusion_codec.TINY} if system == "mousai" else {"vae": vae.TINY_MEL}
    return {"mulan": mulan.TINY, **configs, **autoencoder}
