"""Batch jobs: which clips are made and made again, and the same clips on many devices."""

import hashlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.batch_jobs import DEFAULTS, LINES, entries, job, run, write_lines

from melody_jax import audio, cli
from melody_jax.errors import InputWarning, UserError
from melody_jax.mirror import Mirror
from melody_jax.sampling import batch_job, manifest, plan, prompt_file
from melody_jax.sampling.batch_job import run_batch_job
from melody_jax.sampling.cascade import Melody


def test_a_job_runs_once(melody: Melody, tmp_path: Path) -> None:
    config = job(tmp_path)
    assert run(melody, config) == 5
    manifest_entries = entries(config)
    assert set(manifest_entries) == {"cello", "000001", "000002", "waltz", "blend"}
    assert [entry["seed"] for entry in manifest_entries.values()] == [
        {"cello": 0, "000001": 9, "000002": 2, "waltz": 3, "blend": 4}[name] for name in manifest_entries
    ]
    for name, entry in manifest_entries.items():
        assert soundfile.info(config.out / f"{name}.wav").frames == entry["seconds"] * 24_000
        assert entry["model_hash"] == melody.hash
        assert entry["seconds_taken"] > 0
    assert manifest_entries["cello"]["prompt"] == "slow sad cello"
    assert manifest_entries["000002"]["temperature"] == 0.5
    assert manifest_entries["blend"]["prompt"][0] == {"text": "piano", "audio": None, "weight": 2}
    before = {path: path.stat().st_mtime_ns for path in config.out.iterdir()}
    assert run(melody, config) == 0
    assert {path: path.stat().st_mtime_ns for path in config.out.iterdir()} == before
    clip = melody.generate("driving techno", temperature=0.5, seed=2, **DEFAULTS)[0]
    np.testing.assert_allclose(audio.read(config.out / "000002.wav"), clip, atol=1e-4)


def test_a_killed_job_continues(melody: Melody, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between a clip's file and its line, and in the middle of a file and of a line."""
    config = job(tmp_path)
    plain, count = manifest.ClipManifest.add, []

    def killed(self: manifest.ClipManifest, entry: dict) -> None:
        count.append(entry)
        if len(count) == 3:
            raise KeyboardInterrupt
        plain(self, entry)

    monkeypatch.setattr(manifest.ClipManifest, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        run(melody, config)
    monkeypatch.undo()
    with open(config.out / "manifest.jsonl", "ab") as file:
        file.write(b'{"id": "torn", "ma')
    torn = config.out / f".{count[2]['id']}.wav.abc.part"
    foreign = config.out / ".another.wav.abc.part"
    torn.write_bytes(b"RIFF")
    foreign.write_bytes(b"RIFF")
    assert run(melody, config) == 3
    assert len(entries(config)) == 5
    assert not torn.exists()
    assert foreign.exists()  # another process may be writing it
    (config.out / "waltz.wav").unlink()
    assert run(melody, config) == 1


def test_changed_settings_are_reported(melody: Melody, tmp_path: Path) -> None:
    config = job(tmp_path, LINES[:2])
    run(melody, config)
    before = (config.out / "cello.wav").read_bytes()
    changed = [{"prompt": "slow sad cello", "id": "cello", "seed": 5}, LINES[1]]
    with pytest.raises(UserError, match=r"cello was made with seed 0 and now 5 .* delete .*cello\.wav"):
        run(melody, job(tmp_path, changed))
    with pytest.raises(UserError, match=r"was made with file cello\.wav and now cello\.flac"):
        run(melody, job(tmp_path, LINES[:2], suffix=".flac"))
    assert (config.out / "cello.wav").read_bytes() == before
    assert run(melody, job(tmp_path, changed, replace=True)) == 1
    assert (config.out / "cello.wav").read_bytes() != before
    assert run(melody, job(tmp_path, changed)) == 0
    assert run(melody, job(tmp_path, changed, suffix=".flac", replace=True)) == 2
    assert sorted(path.suffix for path in config.out.iterdir() if path.stem != "manifest") == [".flac"] * 2
    assert run(melody, job(tmp_path, changed, replace=True)) == 2
    other_model = Melody(melody.params, melody.configs, melody.tokenizer, melody.hashes | {"dpd": "0" * 64})
    with pytest.raises(UserError, match=f"was made with model {melody.hash} and now {other_model.hash}"):
        run(other_model, job(tmp_path, changed))
    (config.out / "cello.wav").unlink()
    assert run(melody, job(tmp_path, LINES[:2])) == 1


def test_processes_share_a_job(melody: Melody, tmp_path: Path) -> None:
    first, second = (job(tmp_path, process=process, processes=2) for process in range(2))
    assert [run(melody, config) for config in (first, second)] == [3, 2]
    assert len(entries(first)) == 5
    assert sorted(path.name for path in first.out.glob("manifest*")) == [
        "manifest-000-of-002.jsonl",
        "manifest-001-of-002.jsonl",
    ]
    assert run(melody, job(tmp_path)) == 0  # all manifests are read
    with manifest.open_manifest(Mirror(first.out), 0, 2):
        with pytest.raises(UserError, match="another process is writing it"):
            run(melody, first)
        with pytest.raises(UserError, match="in use by a process with another --processes than 1"):
            run(melody, job(tmp_path))
        with pytest.raises(UserError, match="in use by a process with another --processes than 3"):
            run(melody, job(tmp_path, process=2, processes=3))


def test_clips_that_changed_on_the_disk_are_made_again(melody: Melody, tmp_path: Path) -> None:
    config = job(tmp_path, LINES[:3])
    run(melody, config)
    before = {path.name: path.read_bytes() for path in config.out.glob("*.wav")}
    for entry in entries(config).values():
        content = before[entry["file"]]
        assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    (config.out / "cello.wav").write_bytes(b"")
    (config.out / "000001.wav").write_bytes(before["000001.wav"][:-2] + b"xx")
    with pytest.warns(InputWarning, match="not the clip that was written, so it is made again") as caught:
        assert run(melody, config) == 2
    assert len(caught) == 2
    assert {path.name: len(path.read_bytes()) for path in config.out.glob("*.wav")} == {
        name: len(content) for name, content in before.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert job(tmp_path, LINES[:3]) == config
        assert run(melody, config) == 0


def test_unknown_words_are_in_the_manifest(melody: Melody, tmp_path: Path) -> None:
    lines = [
        {"prompt": "悲しいチェロ", "id": "none"},
        {"prompt": "slow cello", "id": "all"},
        {"prompt": [{"text": "slow 悲"}, {"text": "🎻 cello"}], "negative_prompt": "drums", "id": "some"},
    ]
    lines = [line | {"lm_guidance_scale": 2.0} for line in lines]
    expected = (
        r"prompts.jsonl, line 1: prompt '悲しいチェロ' has no word .*'悲', 'しいチェロ' \(and 2 more prompts"
    )
    with pytest.warns(InputWarning, match=expected) as caught:
        run(melody, config := job(tmp_path, lines))
    assert len(caught) == 1
    words = {name: entry["unknown_words"] for name, entry in entries(config).items()}
    assert words == {"none": ["悲", "しいチェロ"], "all": [], "some": ["悲", "🎻"]}


def test_the_first_scene_without_effect_is_named(melody: Melody, tmp_path: Path) -> None:
    lines = [{"prompt": "a", "story": [{"at": start, "prompt": "b"}]} for start in (0, 0.2, 0.3)]
    says = r"prompts.jsonl, line 2: the scene at 0.2 s has no effect: .* \(and 1 more scenes\)"
    with pytest.warns(InputWarning, match=says) as caught:
        run(melody, job(tmp_path, lines))
    assert len(caught) == 1


def test_drawn_seeds(melody: Melody, tmp_path: Path) -> None:
    lines = [{"prompt": "a waltz", "seed": -1}, {"prompt": "a waltz", "seed": None}, {"prompt": "a waltz"}]
    config = job(tmp_path, lines)
    assert run(melody, config) == 3
    seeds = {name: entry["seed"] for name, entry in entries(config).items()}
    assert seeds["000002"] == 2
    assert len(set(seeds.values())) == 3
    assert run(melody, config) == 0  # another draw is no changed setting
    (config.out / "000000.wav").unlink()
    (config.out / "000001.wav").write_bytes(b"")
    with pytest.warns(InputWarning, match="is made again"):
        assert run(melody, config) == 2
    again = [json.loads(line) for line in (config.out / "manifest.jsonl").read_text().splitlines()[3:]]
    assert {entry["id"]: entry["seed"] for entry in again} == {
        name: seeds[name] for name in ("000000", "000001")
    }
    drawn = prompt_file.read_prompt_file(config.prompts, DEFAULTS | {"seed": -1})
    assert all(line.draws_seed for line in drawn)
    assert run_batch_job(melody, config, drawn) == 0


def test_a_batch_that_memory_cannot_hold_is_refused(
    melody: Melody, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "available_memory", lambda: 90_000)
    config = job(tmp_path)
    with pytest.raises(
        UserError, match="2 clips at a time need 96,000 bytes for their samples, 90,000 are free"
    ):
        run(melody, config)
    assert not list(config.out.glob("*.wav"))


def test_batches_have_one_size(melody: Melody, tmp_path: Path) -> None:
    prompts = [
        {"prompt": f"piano {i}", "best_of": 3 if i > 6 else 1, "steps": 2 if i == 0 else 1} for i in range(10)
    ]
    lines = prompt_file.read_prompt_file(write_lines(tmp_path / "a.jsonl", prompts), DEFAULTS)
    for devices, expected in (
        (1, [(1, 1), (4, 4), (2, 4), (1, 1), (1, 1), (1, 1)]),
        (8, [(1, 8), (6, 8), (3, 8)]),
    ):
        sizes = [(len(batch), size) for batch, size in batch_job.group_lines(melody, lines, 4, devices)]
        assert sizes == expected, devices


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"process": 2, "processes": 2}, "process is 2"),
        ({"suffix": ".mid"}, "suffix is '.mid'"),
        ({"prompts": Path("absent.jsonl")}, "absent.jsonl: cannot be read"),
    ],
)
def test_bad_jobs_are_named(melody: Melody, tmp_path: Path, changes: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        run(melody, job(tmp_path, **changes))


def test_eight_devices_make_the_same_clips(melody: Melody, releases: Path, tmp_path: Path) -> None:
    """Through the script."""
    single_device = job(tmp_path)
    run(melody, single_device)
    script = Path(__file__).parents[1] / "sample.py"
    options = [
        "--model",
        "tiny",
        "--folder",
        str(releases),
        "--prompts",
        str(single_device.prompts),
        "--out",
        "eight",
    ]
    options += [part for name, value in DEFAULTS.items() for part in (f"--{name}", str(value))]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags}
    command = [sys.executable, str(script), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "eight: 5 clips made\n"
    assert "5/5" not in done.stderr  # no progress bar outside of a terminal
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert done.stdout == "eight: all 5 clips exist already\n"
    for path in single_device.out.glob("*.wav"):
        np.testing.assert_allclose(audio.read(tmp_path / "eight" / path.name), audio.read(path), atol=1e-4)


def test_beam_makes_every_share(releases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The clips of one process, in three manifests; what exists is not made again, and errors are one line."""
    pytest.importorskip("apache_beam")
    config = job(tmp_path)
    arguments = ["sample", "--prompts", str(config.prompts), "--batch", "2", "--model", "tiny"]
    arguments += ["--folder", str(releases), "--seconds", "0.5", "--steps", "1", "--guidance-scale", "1"]
    arguments += ["--lm-guidance-scale", "1"]
    cli.run([*arguments, "--out", str(config.out)])
    cli.run(
        [*arguments, "--out", str(tmp_path / "shared"), "--processes", "3", "--beam", "runner=DirectRunner"]
    )
    assert "5 clips made" in capsys.readouterr().out
    assert len(list((tmp_path / "shared").glob("manifest-*-of-003.jsonl"))) == 3
    for name, entry in entries(config).items():
        shared = audio.read(tmp_path / "shared" / entry["file"])
        np.testing.assert_allclose(shared, audio.read(config.out / entry["file"]), atol=1e-4, err_msg=name)
    cli.run(
        [*arguments, "--out", str(tmp_path / "shared"), "--processes", "3", "--beam", "runner=DirectRunner"]
    )
    assert "all 5 clips exist already" in capsys.readouterr().out
    changed = [*arguments, "--out", str(tmp_path / "shared"), "--temperature", "0.7", "--processes", "3"]
    with pytest.raises(UserError, match="was made with temperature"):
        cli.run([*changed, "--beam", "runner=DirectRunner"])
    with pytest.raises(UserError, match="--process is 1; with --beam"):
        cli.run(
            [
                *arguments,
                "--out",
                str(config.out),
                "--process",
                "1",
                "--processes",
                "3",
                "--beam",
                "runner=DirectRunner",
            ]
        )
