"""MusicGen-small at its published size with random weights: seconds to make 10 s of audio, as JSON.

    python benchmarks/musicgen_small.py --runs 1       # in an environment with torch and transformers

`benchmarks/peers.py` runs it. The sizes are those of the released configuration (T5-base, a decoder of 24 x
1024 over four codebooks at 50 Hz, the 32 kHz EnCodec); nothing is downloaded. Guidance is on, with the
default scale of 3.
"""

import argparse
import json
import time

import torch
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
)

FRAMES = 500
"""Frames in 10 s."""
HOP = 640
"""Samples per frame at 32 kHz."""
DELAY = 3
"""Delay of the last of the four codebooks, in steps."""


def model() -> MusicgenForConditionalGeneration:
    text = T5Config(vocab_size=32128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)
    codec = EncodecConfig(
        target_bandwidths=[2.2],
        sampling_rate=32_000,
        num_filters=64,
        upsampling_ratios=[8, 5, 4, 4],
        use_causal_conv=False,
        codebook_size=2048,
        codebook_dim=128,
        use_conv_shortcut=False,
    )
    decoder = MusicgenDecoderConfig(
        hidden_size=1024, num_hidden_layers=24, ffn_dim=4096, num_attention_heads=16
    )
    torch.manual_seed(0)
    return MusicgenForConditionalGeneration(
        MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder)
    ).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1)
    runs = parser.parse_args().runs
    network = model()
    ids = torch.randint(100, 30_000, (1, 16))

    @torch.inference_mode()
    def generate(steps: int) -> torch.Tensor:
        return network.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            guidance_scale=3.0,
            min_new_tokens=steps,
            max_new_tokens=steps,
        )

    generate(8)  # one-time allocations
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        wave = generate(FRAMES + DELAY)
        seconds.append(time.perf_counter() - start)
        assert wave.shape[-1] == FRAMES * HOP, wave.shape
    parameters = sum(parameter.numel() for parameter in network.decoder.parameters())
    print(json.dumps({"decoder_parameters": parameters, "seconds": seconds, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
