"""Batch jobs of five short clips, for tests of them and of prompt files."""

import json
from pathlib import Path

from melody_jax.sampling import prompt_file
from melody_jax.sampling.batch_job import BatchJobConfig, run_batch_job
from melody_jax.sampling.cascade import Melody

DEFAULTS = {"seconds": 0.5, "steps": 1, "guidance_scale": 1.0, "lm_guidance_scale": 1.0}
LINES = [
    {"prompt": "slow sad cello", "id": "cello"},
    {"prompt": "bossa nova", "seed": 9},
    {"prompt": "driving techno", "temperature": 0.5},
    {"prompt": "a waltz", "id": "waltz", "seconds": 0.25},
    {"prompt": [{"text": "piano", "weight": 2}, {"text": "rain"}], "id": "blend"},
]


def write_lines(path: Path, lines: list) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def job(folder: Path, lines: list = LINES, **changes: object) -> BatchJobConfig:
    prompts = write_lines(folder / "prompts.jsonl", lines)
    return BatchJobConfig(**{"prompts": prompts, "out": folder / "clips", "batch": 2} | changes)  # type: ignore[arg-type]


def run(melody: Melody, config: BatchJobConfig) -> int:
    return run_batch_job(melody, config, prompt_file.read_prompt_file(config.prompts, DEFAULTS))


def entries(config: BatchJobConfig) -> dict[str, dict]:
    lines = [
        json.loads(line) for path in config.out.glob("manifest*") for line in path.read_text().splitlines()
    ]
    assert len({line["id"] for line in lines}) == len(lines)
    return {line["id"]: line for line in lines}
