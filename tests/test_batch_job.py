"""Batch jobs: prompt files, which clips are made and made again, and the same clips on many devices."""

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

from melody_jax import audio, cli, load
from melody_jax.errors import InputWarning, UserError
from melody_jax.sampling import batch_job, manifest, plan, prompt_file
from melody_jax.sampling.batch_job import BatchJobConfig, run_batch_job
from melody_jax.sampling.cascade import Melody
from melody_jax.sampling.request import Request

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
    with manifest.open_manifest(first.out, 0, 2):
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


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    prompt = "a\u2028b\u0085c\x1cd"
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(f'{{"prompt": "{prompt[:5]}"}}\r\n\r\n{{"prompt": "z"}}'.encode())
    lines = prompt_file.read_prompt_file(path, {})
    assert [(line.number, line.request.prompt) for line in lines] == [(1, prompt[:5]), (3, "z")]


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
    ("lines", "named"),
    [
        (
            [{"prompt": "a"}, "", {"prompt": "b", "steps": 0}, {"prompt": ""}],
            r"line 3: steps is 0.*and 1 more bad line",
        ),
        (["{nonsense"], "line 1: not JSON"),
        (["[]"], "must be an object with a"),
        ([{"text": "a"}], "unknown setting 'text'"),
        ([{"seconds": 3}], "there is no prompt; describe the music"),
        ([{"prompt": "a", "regions": [3, 5]}], r"regions are \[3, 5\]"),
        ([{"source": "absent.wav", "prompt": "a"}], r"absent\.wav: cannot be read"),
        ([{"prompt": "a", "stepz": 3}], "'stepz'.*'steps'"),
        ([{"prompt": "a", "steps": [1, 2]}], r"steps is \[1, 2\]; it must be a single value"),
        ([{"prompt": "a", "id": "../up"}], "id '../up' is not a valid file name"),
        ([{"prompt": "a", "id": ".hidden"}], "id '.hidden' is not a valid file name"),
        ([{"prompt": "a", "id": "x" * 101}], "is not a valid file name"),
        (
            [{"prompt": "a", "id": "A"}, {"prompt": "b", "id": "a"}],
            "line 2: id 'a' is already used by an earlier line",
        ),
        ([{"prompt": "very " * 500}], "500 word pieces"),
        ([{"prompt": [{"text": "a", "wight": 2}]}], "part has 'wight'"),
        ([{"prompt": [{"audio": "absent.wav"}]}], r"absent\.wav: cannot be read"),
        ([{"prompt": "a", "story": [{"at": 1}]}], "story is .* that have at and prompt"),
        (["[" * 100_000], "line 1: not JSON .nested too deeply"),
        (['{"prompt": "a", "seed": ' + "9" * 5000 + "}"], "line 1: not JSON"),
        ([{"prompt": "a", "seed": 2**64}], "seed is 18446744073709551616; it must be from -1 to"),
        ([{"prompt": "a", "seed": True}], "seed is True"),
        ([{"prompt": "a", "seed": 1.5}], "seed is 1.5"),
        ([{"prompt": "a", "seconds": 1e-5}], "seconds is 1e-05; it must be at least one sample"),
        ([{"prompt": "a", "seconds": 1e400}], "seconds is inf"),
        ([{"prompt": "a", "keep_tokens": "no"}], "keep_tokens is 'no'; it must be true or false"),
        ([{"prompt": "a", "negative_prompt": 5}], "negative_prompt is 5; it must be a text"),
        ([{"prompt": "a", "negative_prompt": None}], "negative_prompt is None; it must be a text"),
        ([{"prompt": "a", "steps": None}], "steps is None; it must be a whole number"),
        ([{"prompt": "a", "solver": 5}], "solver is 5; it must be a text"),
        ([{"prompt": None}], "there is no prompt; describe the music"),
        ([{"prompt": [{"text": 5}]}], "text is 5; it must be a text"),
        ([{"prompt": [{"text": None, "audio": None}]}], "text is None"),
        ([{"prompt": [{"audio": None}]}], "has text or audio, one of the two"),
        ([{"prompt": [{"audio": 5}]}], "audio is 5; it must be the name of a sound file"),
        ([{"prompt": "a", "source": 5}], "source is 5; it must be the name of a sound file"),
        ([{"prompt": "a", "source": ""}], "source is ''"),
        ([{"prompt": "a", "source": "/dev/zero"}], "/dev/zero: not a regular file"),
        ([{"prompt": "a", "source": "a\0b"}], "cannot be read"),
        ([{"prompt": "", "source": None}], "prompt '' is empty"),
        (['{"prompt": "a \\ud83d"}'], "not valid Unicode: character 3 is half of a surrogate pair"),
        (['{"prompt": "a", "negative_prompt": "\\udc00"}'], "negative_prompt .* is not valid Unicode"),
        ([{"prompt": "a", "id": None}], "id None is not a valid file name"),
        ([{"prompt": "a", "id": ["b"]}], "is not a valid file name"),
        ([{"prompt": "a", "story": [{"at": "x", "prompt": "b"}]}], "start is 'x'; it must be a number"),
        ([{"prompt": "a", "seed": "7"}], "seed is '7'"),
        (
            [{"prompt": "a", "story": [{"at": 20, "prompt": "b"}]}],
            "line 1: a scene of the story begins at 20 s",
        ),
        ([], "no prompts"),
    ],
)
def test_bad_lines_are_named_before_any_work(melody: Melody, tmp_path: Path, lines: list, named: str) -> None:
    config = job(tmp_path, lines)
    with pytest.raises(UserError, match=named):
        run(melody, config)
    assert not config.out.exists()


def test_bad_sources_are_named_before_any_work(releases: Path, tmp_path: Path) -> None:
    editor = load("tiny", folder=releases, networks=("mulan", "lm", "dpd", "vae", "tokenizer"))
    soundfile.write(tmp_path / "loud.wav", np.full(48_000, 20_000.0), 24_000, "FLOAT")
    config = job(tmp_path, [{"prompt": "a"}, {"prompt": "a", "source": "loud.wav"}])
    with pytest.raises(
        UserError, match=r"line 2: a source of .*loud\.wav, 48000 samples: samples of up to 20000"
    ):
        run(editor, config)
    assert not config.out.exists()


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


def test_a_control_scale_is_for_the_lines_with_a_key(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl", [{"prompt": "a", "bpm": 120.0}, {"prompt": "b", "key": "A minor"}]
    )
    lines = prompt_file.read_prompt_file(path, DEFAULTS | {"control_scale": 4.0})
    assert [line.request.control_scale for line in lines] == [3.0, 4.0]


def test_a_default_is_for_the_lines_that_it_has_an_effect_on(tmp_path: Path) -> None:
    """A default for other lines is no mistake; one for no line is, and so is a line's own setting without effect."""
    changed = {"prompt": "a", "source": "mine.wav", "keep_tokens": True}
    soundfile.write(tmp_path / "mine.wav", np.zeros(24_000), 24_000)
    given = {
        "temperature": 0.5,
        "top_k": 7,
        "negative_prompt": "drums",
        "lm_guidance_scale": 3.0,
        "seconds": 5.0,
    }
    path = write_lines(tmp_path / "a.jsonl", [changed, {"prompt": "b"}])
    first, second = (line.request for line in prompt_file.read_prompt_file(path, given))
    assert {name: getattr(first, name) for name in given} == {name: getattr(Request, name) for name in given}
    assert {name: getattr(second, name) for name in given} == given
    write_lines(path, [changed])
    for name, value in (*given.items(), ("control_scale", 5.0)):
        with pytest.raises(UserError, match=rf"{name} is {value!r}, but no line of .*a\.jsonl uses it"):
            prompt_file.read_prompt_file(path, {name: value})
    write_lines(path, [changed | {"top_p": 0.5}])
    with pytest.raises(UserError, match=r"line 1: top_p is 0\.5; keep_tokens leaves nothing"):
        prompt_file.read_prompt_file(path, {})
    write_lines(path, [{"prompt": "a", "bpm": 90.0}])
    with pytest.raises(UserError, match=r"control_scale is 5\.0, but no line of .* uses it"):
        prompt_file.read_prompt_file(path, {"control_scale": 5.0})


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
