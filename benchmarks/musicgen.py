"""MusicGen-small or MusicGen-stereo-small at its published size with random weights: seconds to make 10 s of audio.

    python benchmarks/musicgen.py             # in an environment with torch and transformers
    python benchmarks/musicgen.py --stereo

`benchmarks/peers.py` runs it and reads the JSON that it prints. The sizes are those of the released configurations
(T5-base, a decoder of 24 x 1024 over four codebooks at 50 Hz, eight in stereo, the 32 kHz EnCodec); nothing is
downloaded. Guidance is on, with the default scale of 3.
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
"""Delay of the last of four codebooks, in steps; in stereo the sides share the delays."""


def model(channels: int) -> MusicgenForConditionalGeneration:
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
        hidden_size=1024,
        num_hidden_layers=24,
        ffn_dim=4096,
        num_attention_heads=16,
        num_codebooks=4 * channels,
        audio_channels=channels,
    )
    torch.manual_seed(0)
    return MusicgenForConditionalGeneration(
        MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder)
    ).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stereo", action="store_true")
    channels = 2 if parser.parse_args().stereo else 1
    network = model(channels)
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
    start = time.perf_counter()
    wave = generate(FRAMES + DELAY)
    seconds = time.perf_counter() - start
    assert wave.shape[1:] == (channels, FRAMES * HOP), wave.shape
    size = sum(parameter.numel() for parameter in network.decoder.parameters())
    name = f"{size / 1e6:.1f} M decoder, torch {torch.__version__}"
    print(json.dumps({"size": name, "seconds": seconds, "audio_seconds": FRAMES * HOP / 32_000}))


if __name__ == "__main__":
    main()
