"""The shape of Stable Audio Open Small with random weights: seconds to make its 11.9 s of 44.1 kHz stereo.

    python benchmarks/stable_audio_small.py       # in an environment with torch, transformers and diffusers

`benchmarks/peers.py` runs it and reads the JSON that it prints. A transformer of 16 x 1024 in 8 heads on 256 latents of
64 channels, 8 ping-pong steps without guidance (arXiv 2505.08175), T5-base, and the decoder of Stable Audio Open (arXiv
2407.14358), as diffusers has them. Its transformer has 332 M parameters here, 341 M in the release, which counts the
embeddings of the duration. Nothing is downloaded.
"""

import json
import time

import torch
from diffusers import AutoencoderOobleck
from diffusers.models.transformers.stable_audio_transformer import StableAudioDiTModel
from transformers import T5Config, T5EncoderModel

LATENTS = 256
HOP = 2048
RATE = 44_100
STEPS = 8
WORDS = 64
"""Tokens of the text that the transformer attends to."""


def main() -> None:
    torch.manual_seed(0)
    text = T5EncoderModel(
        T5Config(vocab_size=32128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)
    ).eval()
    backbone = StableAudioDiTModel(
        sample_size=LATENTS,
        num_layers=16,
        attention_head_dim=128,
        num_attention_heads=8,
        num_key_value_attention_heads=8,
        global_states_input_dim=768,
    ).eval()
    codec = AutoencoderOobleck().eval()
    ids = torch.randint(100, 30_000, (1, WORDS))

    @torch.inference_mode()
    def generate(steps: int) -> torch.Tensor:
        words = text(ids).last_hidden_state
        latents = torch.randn(1, 64, LATENTS)
        for time_left in torch.linspace(1, 0, steps + 1)[:-1]:
            velocity = backbone(
                latents, time_left[None], encoder_hidden_states=words, global_hidden_states=words[:, :1]
            ).sample
            clean = latents - time_left * velocity
            later = time_left - 1 / steps
            latents = (1 - later) * clean + later * torch.randn_like(clean)
        return codec.decode(latents).sample

    generate(1)  # one-time allocations
    start = time.perf_counter()
    wave = generate(STEPS)
    seconds = time.perf_counter() - start
    assert wave.shape == (1, 2, LATENTS * HOP), wave.shape
    parameters = sum(p.numel() for part in (backbone, codec.decoder) for p in part.parameters())
    name = f"{parameters / 1e6:.0f} M transformer and decoder, torch {torch.__version__}"
    print(json.dumps({"size": name, "seconds": seconds, "audio_seconds": LATENTS * HOP / RATE}))


if __name__ == "__main__":
    main()
