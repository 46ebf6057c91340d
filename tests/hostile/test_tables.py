"""Tables of captions as people write them: read as they are meant, or refused with the line's number."""

import json
import os
import unicodedata
from pathlib import Path

import pytest

from hostile.tables import touch
from melody_jax.data.layouts import Recording, read_captions, recordings
from melody_jax.errors import UserError


def captions(folder: Path, content: str | bytes, name: str = "c.csv") -> dict[str, list[str]]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_captions(path)


def listed(folder: Path, rows: list[tuple[str, str]], **options: bool) -> dict[str, Recording]:
    table = folder.parent / "c.jsonl"
    table.write_text("".join(json.dumps({"file": file, "caption": text}) + "\n" for file, text in rows))
    return {recording.id: recording for recording in recordings(folder, "files", table, **options)}


def test_a_caption_with_commas_and_no_quotes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"c\.csv, line 3: 4 values, but the header names 2 columns"):
        captions(tmp_path, "file,caption\nb.wav,fast\na.wav,slow, sad cello, 72 bpm\n")
    with pytest.raises(UserError, match=r"line 2: the row ends too early"):
        captions(tmp_path, "file,caption\na.wav\n")
    with pytest.raises(UserError, match=r"line \d"):
        captions(tmp_path, 'file,caption\na.wav,"slow\nb.wav,fast\n')


@pytest.mark.parametrize(
    "content",
    [
        'file,caption\na.wav,"slow, sad"\n',
        '\ufefffile,caption\r\na.wav,"slow, sad"\r\n',
        'File, Caption\na.wav, "slow, sad"\n',
        "caption;file\nslow, sad;a.wav\n\n",
        "FILE\tCAPTION\tbpm\na.wav\tslow, sad\t72\n",
        '\n file , caption \na.wav,"slow, sad"\n , \n',
    ],
)
def test_what_is_unambiguous_is_accepted(tmp_path: Path, content: str) -> None:
    assert captions(tmp_path, content) == {"a.wav": ["slow, sad"]}


def test_jsonl_takes_lists_marks_and_separators_inside_text(tmp_path: Path) -> None:
    lines = [
        '\ufeff{"file": "a.wav", "caption": ["slow", "sad"]}',
        '{"file": "b.wav", "caption": "one\u2028two\x85three"}',
    ]
    assert captions(tmp_path, "\r\n".join(lines) + "\r\n", "c.jsonl") == {
        "a.wav": ["slow", "sad"],
        "b.wav": ["one\u2028two\x85three"],
    }
    for value in ("5", "[]", '["x", 5]', '[["x"]]', "null", '""', '{"en": "x"}'):
        with pytest.raises(UserError, match="line 1: needs caption, a text"):
            captions(tmp_path, f'{{"file": "a.wav", "caption": {value}}}', "c.jsonl")
    for line in ("[" * 100_000, "1" * 5_000, "[1]", "{"):
        with pytest.raises(UserError, match=r"line 1: not (a )?JSON"):
            captions(tmp_path, line, "c.jsonl")
    with pytest.raises(UserError, match="not UTF-8 at byte 15"):
        captions(tmp_path, b"file,caption\na,\xe9\n")


@pytest.mark.parametrize("name", ["../out.wav", "/etc/out.wav", "a/../../out.wav", "../source2/x.wav"])
def test_a_table_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    touch(source, "in.wav")
    touch(tmp_path, "out.wav")
    with pytest.raises(UserError, match=r"c\.jsonl, line 2: .* lies outside of .*--captions-may-leave"):
        listed(source, [("in.wav", "x"), (name, "y")])
    assert set(listed(source, [("in.wav", "x"), (name, "y")], may_leave=True)) == {"in.wav", name}
    inside = listed(source, [(str(source / "in.wav"), "x"), ("./in.wav", "y"), ("a/../in.wav", "z")])
    assert inside["in.wav"].captions[:2] == ("x", "y")


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_unicode_forms_match(tmp_path: Path, on_disk: str, in_table: str) -> None:
    source = tmp_path / "source"
    name = "Bj\u00f6rk/caf\u00e9.wav"
    touch(source, unicodedata.normalize(on_disk, name))
    rows = [(unicodedata.normalize(in_table, name), "x")]
    (recording,) = listed(source, rows).values()
    assert recording.captions == ("x",)
    assert not recording.problem


def test_case_and_slashes_match_if_one_file_fits(tmp_path: Path) -> None:
    source = tmp_path / "source"
    touch(source, "Sub/One.WAV", "two.wav", "TWO.wav")
    by_name = listed(source, [("sub\\one.wav", "x"), ("two.wav", "y"), ("Two.wav", "z"), ("three.wav", "w")])
    assert by_name["Sub/One.WAV"].captions == ("x",)
    assert by_name["two.wav"].captions == ("y",)
    assert by_name["TWO.wav"].problem == "uncaptioned"
    assert (by_name["Two.wav"].problem, by_name["Two.wav"].detail) == (
        "ambiguous",
        "fits TWO.wav and two.wav",
    )
    assert by_name["three.wav"].problem == "missing"


def test_names_that_no_disk_has_are_missing_or_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    touch(source, "in.wav")
    assert listed(source, [("in.wav", "x"), ("y" * 300, "y")])["y" * 300].problem == "missing"
    for name in ("a\0.wav", "z" * 5_000):
        with pytest.raises(UserError, match=r"line 2: .* is not the name of a file"):
            listed(source, [("in.wav", "x"), (name, "y")])


def test_audiofolder_counts_what_its_table_does_not_name(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.wav", "train/2.wav", "cover.jpg", "._1.wav")
    (tmp_path / "train" / "metadata.csv").write_text("File_Name,Text\n1.wav,a dog\n")
    by_name = {recording.id: recording.problem for recording in recordings(tmp_path, "audiofolder", None)}
    assert by_name == {
        "train/1.wav": "",
        "train/2.wav": "uncaptioned",
        "cover.jpg": "suffix",
        "._1.wav": "hidden",
    }


def test_tables_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c.csv")
    with pytest.raises(UserError, match="not a regular file"):
        read_captions(tmp_path / "c.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_captions(tmp_path / "none.csv")
