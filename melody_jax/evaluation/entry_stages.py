"""Where ground truth enters each system for `melody diagnose`, one stage earlier each time.

MeLoDy:
    vae      the latents of the truth, decoded
    dpd      its semantic and prefix tokens, through the diffusion and the decoder
    lm       its MuLan prefix tokens, through the language model and all later stages
MusicLM:
    vae      the codes of the truth, decoded
    fine     its coarse codes, through the fine model and the decoder
    coarse   its semantic and prefix tokens, through the coarse model and all later stages
    lm       its prefix tokens, through the semantic model and all later stages
Noise2Music:
    vae      the log mels of the truth, through the vocoder
    upsampler  its log mels of a low rate, with the words of the prompt, through the upsampler and the vocoder
Moûsai:
    dmae     the latents of the truth, through the decoder, a diffusion
All end with
    text     the prompt, through the full system: what a user hears
and are compared with
    truth    the composed piece itself, rendered
    shuffled the clips of `text`, each judged against the prompt of another group
"""

from typing import NamedTuple

TRUTH = "truth"


class EntryStage(NamedTuple):
    """A place where ground truth enters."""

    name: str
    """Its name in the report."""
    networks: str
    """The networks between it and the previous stage."""
    advice: str
    """What to try if these networks lose much."""
    follows_truth: bool = False
    """Whether its clips follow the truth in time."""


TEXT_TOWER = EntryStage(
    "text",
    "MuLan's text tower",
    "train MuLan on more captions of the groups and facts that it loses; prefixes from captions "
    "(data.text_prefix_probability) close the gap for the language model",
)
LM = EntryStage(
    "lm",
    "language model",
    "tune its sampling first (temperature, guidance), then train the language model longer or on more music",
)
GENERATOR = EntryStage(
    "text",
    "generator",
    "tune the guidance first, then train the generator longer or on more captioned music",
)
STAGES: dict[str, tuple[EntryStage, ...]] = {
    "melody": (
        EntryStage(
            "vae",
            "VAE",
            "the decoder limits all other stages: train the VAE longer, with more latent channels, with a wider "
            "decoder, or on more music of the groups that it loses; `benchmarks/reconstruction.py` measures it alone",
            follows_truth=True,
        ),
        EntryStage(
            "dpd",
            "tokenizer and diffusion",
            "the tokens may lack the information, or the diffusion may ignore it: try more steps first "
            "(`--steps 20`), then compare a larger semantic vocabulary with a longer trained or wider diffusion",
            follows_truth=True,
        ),
        LM,
        TEXT_TOWER,
    ),
    "musiclm": (
        EntryStage(
            "vae",
            "codec",
            "the codec limits all other stages: train it longer, or with more codes per second",
            follows_truth=True,
        ),
        EntryStage(
            "fine",
            "fine model",
            "tune its temperature first, then train it longer, or let the coarse model write more levels",
            follows_truth=True,
        ),
        EntryStage(
            "coarse",
            "tokenizer and coarse model",
            "the tokens may lack the information, or the coarse model may ignore it: tune its sampling first, then "
            "compare a larger semantic vocabulary with a longer trained or larger coarse model",
            follows_truth=True,
        ),
        LM,
        TEXT_TOWER,
    ),
    "noise2music": (
        EntryStage(
            "vae",
            "vocoder",
            "the vocoder limits all other stages: train it longer, or with more mel bands",
            follows_truth=True,
        ),
        EntryStage(
            "upsampler",
            "upsampler",
            "try more steps first (`--steps 20`), then train it longer, or with less noise on what it refines",
            follows_truth=True,
        ),
        GENERATOR,
    ),
    "mousai": (
        EntryStage(
            "dmae",
            "diffusion autoencoder",
            "try more steps first (`--steps 20`), then train the autoencoder longer or with more latents per second",
            follows_truth=True,
        ),
        GENERATOR,
    ),
}
"""System -> its stages after the truth, the last network first."""
