import json
import sys

import numpy as np
import pytest

from melody_jax import audio, cli
from melody_jax.composer import soundfont
from melody_jax.data import compose_corpus, compose_workers, records
from melody_jax.data.layouts import recordings
from melody_jax.errors import UserError

SMALL = ("--hours", str(5 * 3 / 3600), "--seconds", "3", "--pieces-per-shard", "2", "--soundfonts", "none")


def compose(folder, *more):
    cli.run(["compose", "--out", str(folder), *SMALL, *more])
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "one"
    return folder, compose(folder, "--workers", "1")


def test_corpus_holds_what_it_should(corpus):
    folder, files = corpus
    assert len(files) == 4
    source = records.open_shards(folder, kind="audio", verify=True)
    assert len(source) == 5
    for index in range(5):
        record = source[index]
        meta = records.decode_json(record["meta"])
        assert audio.flac_info(record["audio"].tobytes())[0] == 72000
        assert np.abs(audio.decode_flac(record["audio"].tobytes())).max() > 0.05
        assert meta["id"] == f"train-0-{index:07d}"
        assert (meta["split"], meta["renderer"], meta["soundfont"]) == ("train", "synth", None)
        assert len(set(meta["captions"])) == compose_corpus.CAPTIONS
        assert meta["facts"]["lead"] == meta["facts"]["instruments"][0]


def test_same_bytes_for_any_number_of_workers(corpus, tmp_path):
    assert compose(tmp_path / "two", "--workers", "2") == corpus[1]


def test_resume_makes_what_is_missing(corpus, tmp_path, monkeypatch):
    folder = tmp_path / "resumed"
    folder.mkdir()
    for name, data in corpus[1].items():
        (folder / name).write_bytes(data)
    names = sorted(name for name in corpus[1] if name.endswith("array_record"))
    (folder / names[0]).unlink()
    (folder / f".{names[0]}.123.part").write_bytes(b"what a killed worker left")
    made = []
    original = compose_workers.run_groups
    monkeypatch.setattr(compose_workers, "run_groups", lambda *args: made.extend(args[1]) or original(*args))
    assert compose(folder, "--workers", "1") == corpus[1]
    assert made == [0]
    assert compose(folder, "--workers", "2") == corpus[1]
    assert made == [0]


@pytest.mark.parametrize("file_format", ["wav", "flac"])
def test_sound_files_with_captions(corpus, tmp_path, capsys, file_format):
    folder = tmp_path / "files"
    files = compose(folder, "--format", file_format, "--workers", "1")
    assert f"in {file_format.upper()} files" in capsys.readouterr().out
    source = records.open_shards(corpus[0])
    listed = recordings(folder, "files", folder / "captions.jsonl")
    assert [recording.problem for recording in listed] == [""] * 5
    for index, recording in enumerate(listed):
        meta = records.decode_json(source[index]["meta"])
        assert recording.id == f"{meta['id']}.{file_format}"
        assert recording.captions == tuple(meta["captions"])
        wave = audio.decode_flac(source[index]["audio"].tobytes())
        np.testing.assert_array_equal(audio.read(recording.path), wave)
    (folder / listed[2].id).unlink()
    assert compose(folder, "--format", file_format, "--workers", "2") == files


def test_sound_files_and_shards_are_kept_apart(corpus, tmp_path):
    with pytest.raises(UserError, match="holds shards; choose another folder"):
        compose(corpus[0], "--format", "wav")
    (tmp_path / compose_corpus.SETTINGS_FILE).write_text('{"settings": {}, "versions": {}}')
    with pytest.raises(UserError, match="holds sound files; choose another folder"):
        compose(tmp_path)
    with pytest.raises(UserError, match="holds a corpus with channels None, not 1"):
        compose(tmp_path, "--format", "wav")
    for damaged in ("[]", '{"settings": 3, "versions": {}}'):
        (tmp_path / compose_corpus.SETTINGS_FILE).write_text(damaged)
        with pytest.raises(UserError, match="not the settings of a corpus"):
            compose(tmp_path, "--format", "wav")


def test_other_settings_are_refused(corpus):
    with pytest.raises(UserError, match="corpus with seed 0, not 3"):
        compose(corpus[0], "--seed", "3")
    with pytest.raises(UserError, match="corpus with split train, not test"):
        compose(corpus[0], "--split", "test")


@pytest.mark.parametrize(
    "command", [["compose"], ["compose", "--format", "flac"], ["prepare", "--source", "."]]
)
def test_rates_that_flac_cannot_hold_are_refused(tmp_path, command):
    with pytest.raises(UserError, match="sample_rate is 65537; above 65535 FLAC holds multiples of 10 alone"):
        cli.run([*command, "--out", str(tmp_path / "a"), "--sample-rate", "65537"])
    assert not (tmp_path / "a").exists()


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "x.array_record").write_bytes(b"")
    with pytest.raises(UserError, match="choose an empty folder"):
        compose(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="it must be a folder"):
        compose(tmp_path / "file")


def test_seeds_of_splits_are_disjoint():
    seeds = {
        split: {
            compose_corpus.piece_seed(seed, split, index)
            for seed in (0, 1, 999_999)
            for index in (0, 1, 2, 999_999_999)
        }
        for split in ("train", "validation", "test")
    }
    assert len(set.union(*seeds.values())) == sum(map(len, seeds.values())) == 36
    assert all(seed < 2**53 for values in seeds.values() for seed in values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "dev"], "split 'dev' is unknown"),
        (["--format", "mp3"], "format is 'mp3'"),
        (["--seed", "-1"], "seed is -1"),
        (["--seconds", "0.2"], "seconds is 0.2"),
        (["--seconds", "nan"], "seconds is nan"),
        (["--hours", "0"], "at least one piece"),
        (["--hours", "nan"], "hours is nan"),
        (["--hours", "many"], "--hours takes FLOAT, not 'many'"),
        (["--workers", "-2"], "workers is -2"),
        (["--pieces-per-shard", "0"], "pieces_per_shard is 0"),
        (["--soundfonts", "Nope"], "'Nope' is not a supported SoundFont"),
        (["--hourz", "3"], "did you mean --hours"),
        (["--out", ""], "--out FOLDER"),
    ],
)
def test_bad_options_are_one_line(tmp_path, monkeypatch, capsys, options, message):
    place = [] if "--out" in options else ["--out", str(tmp_path / "c")]
    monkeypatch.setattr(sys, "argv", ["melody", "compose", *place, *options])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_unknown_command_and_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["melody", "compos"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: unknown command 'compos'; did you mean compose?\n"
    cli.run([])
    assert "compose " in capsys.readouterr().out


def test_fonts_follow_the_split(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(soundfont, "FOLDERS", (tmp_path,))
    assert compose_corpus._fonts(compose_corpus.ComposeConfig()) == {}
    assert "apt-get install" in capsys.readouterr().out
    test_only = [font for font in soundfont.FONTS.values() if font.splits == ("test",)]
    assert test_only
    (tmp_path / test_only[0].files[0]).write_bytes(b"")
    assert compose_corpus._fonts(compose_corpus.ComposeConfig()) == {}
    with pytest.raises(UserError, match="reserved for the split test"):
        compose_corpus._fonts(compose_corpus.ComposeConfig(soundfonts=(test_only[0].name,)))


def test_manifest_says_what_was_made(corpus):
    manifest = json.loads(corpus[1][records.MANIFEST])
    assert manifest["records"] == 5
    assert manifest["settings"]["split"] == "train"
    assert "workers" not in manifest["settings"]
    assert manifest["versions"]["melody_jax"]
