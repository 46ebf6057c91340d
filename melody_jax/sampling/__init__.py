"""Prompt -> prefix tokens -> semantic tokens -> latents -> waveform."""
