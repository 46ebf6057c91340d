"""Fixtures in the layouts that sets are published in: columns, separators and folders as there, the values made up."""

import json
from pathlib import Path

import pytest

from melody_jax.data.layouts import Recording, read_captions, recordings
from melody_jax.errors import UserError

FMA_ALBUM = (
    "comments date_created date_released engineer favorites id information listens producer tags title "
    "tracks type"
)
FMA_ARTIST = (
    "active_year_begin active_year_end associated_labels bio comments date_created favorites id latitude location "
    "longitude members name related_projects tags website wikipedia_page"
)
FMA_TRACK = (
    "bit_rate comments composer date_created date_recorded duration favorites genre_top genres genres_all information "
    "interest language_code license listens lyricist number publisher tags title"
)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"audio")


def by_id(by_name: list[Recording]) -> dict[str, Recording]:
    assert [recording.id for recording in by_name] == sorted(recording.id for recording in by_name)
    return {recording.id: recording for recording in by_name}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_files(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, "a/0.WAV", "1.mp3", "cover.jpg", ".hidden.wav")
    rows = [("a/0.WAV", "calm, slow"), ("a/0.WAV", "soft"), ("gone.wav", "x")]
    table = tmp_path / f"c{suffix}"
    if suffix == ".csv":
        table.write_text("file,caption\n" + "".join(f'{file},"{caption}"\n' for file, caption in rows))
    else:
        table.write_text("".join(json.dumps({"file": f, "caption": c}) + "\n" for f, c in rows))
    by_name = by_id(recordings(tmp_path, "files", table))
    assert {name: recording.problem for name, recording in by_name.items()} == {
        ".hidden.wav": "hidden",
        "1.mp3": "uncaptioned",
        "a/0.WAV": "",
        "cover.jpg": "suffix",
        "gone.wav": "missing",
    }
    assert by_name["a/0.WAV"].captions == ("calm, slow", "soft")
    assert (by_name["a/0.WAV"].size, by_name["gone.wav"].size) == (5, -1)
    assert not by_id(recordings(tmp_path, "files", None))["1.mp3"].problem


def test_audiofolder(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.wav", "train/sub/2.flac", "test/3.mp3")
    (tmp_path / "train" / "metadata.csv").write_text(
        'file_name,text\n1.wav,"a dog, singing"\nsub/2.flac,a cat\n'
    )
    (tmp_path / "test" / "metadata.jsonl").write_text(
        '{"file_name": "3.mp3", "caption": "rain", "bpm": 90}\n'
    )
    by_name = by_id(recordings(tmp_path, "audiofolder", None))
    assert {name: recording.captions for name, recording in by_name.items()} == {
        "test/3.mp3": ("rain",),
        "train/1.wav": ("a dog, singing",),
        "train/sub/2.flac": ("a cat",),
    }
    (tmp_path / "test" / "metadata.jsonl").write_text('{"file_name": "3.mp3", "bpm": 90}\n')
    with pytest.raises(UserError, match=r"metadata\.jsonl, line 1: needs file_name and one of caption"):
        recordings(tmp_path, "audiofolder", None)


def test_musiccaps(tmp_path: Path) -> None:
    table = tmp_path / "musiccaps-public.csv"
    table.write_text(
        "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,"
        "is_balanced_subset,is_audioset_eval\n"
        '-0Gj8-vB1q4,30,40,"/m/0140xf,/m/02cjck","[\'slow ballad\', \'it\\\'s sad\']","A voice, softly.",4,False,True\n'
        "abc_DEF-123,0,10,/m/04rlf,[],Drums.,0,True,False\nzzzzzzzzzzz,200,210,/m/04rlf,[],Gone.,0,True,False\n"
    )
    touch(tmp_path / "wav", "-0Gj8-vB1q4.wav", "[abc_DEF-123]-[0-10].mp3")
    by_name = by_id(recordings(tmp_path / "wav", "musiccaps", table))
    first = by_name["-0Gj8-vB1q4"]
    assert (first.captions, first.clip) == (("A voice, softly.",), (30.0, 40.0))
    assert first.tags == {"aspects": ["slow ballad", "it's sad"]}
    assert by_name["abc_DEF-123"].path.endswith("[abc_DEF-123]-[0-10].mp3")
    assert by_name["zzzzzzzzzzz"].problem == "missing"


def test_mtg_jamendo(tmp_path: Path) -> None:
    table = tmp_path / "autotagging.tsv"
    table.write_text(
        "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n"
        "track_0000214\tartist_000014\talbum_000031\t14/214.mp3\t124.6\tgenre---punkrock\n"
        "track_0000382\tartist_000020\talbum_000046\t82/382.mp3\t211.1\tgenre---rock\tinstrument---drums\tmood/theme---dark\n"
    )
    touch(tmp_path / "audio", "14/214.mp3", "82/382.low.mp3")
    by_name = by_id(recordings(tmp_path / "audio", "mtg-jamendo", table))
    assert by_name["track_0000214"].captions == ("punkrock",)
    second = by_name["track_0000382"]
    assert second.tags == {"genre": ["rock"], "instrument": ["drums"], "mood/theme": ["dark"]}
    assert second.captions == ("rock, drums, dark",)
    assert second.path.endswith("82/382.low.mp3")
    assert not second.problem


def test_fma(tmp_path: Path) -> None:
    columns = [("album", name) for name in FMA_ALBUM.split()] + [
        ("artist", name) for name in FMA_ARTIST.split()
    ]
    columns += [("set", "split"), ("set", "subset")] + [("track", name) for name in FMA_TRACK.split()]

    def row(track: int, subset: str, genre: str, genres: str) -> str:
        values = dict.fromkeys(columns, "")
        values |= {
            ("set", "subset"): subset,
            ("track", "genre_top"): genre,
            ("track", "genres"): f'"{genres}"',
        }
        values["artist", "bio"] = '"two\nlines, and a comma"'
        return ",".join([str(track), *values.values()]) + "\n"

    assert len(columns) == 52
    table = tmp_path / "fma_metadata" / "tracks.csv"
    table.parent.mkdir()
    header = (
        ",".join(["", *(group for group, _ in columns)])
        + "\n"
        + ",".join(["", *(name for _, name in columns)])
    )
    lines = (
        row(2, "small", "Hip-Hop", "[21, 10]")
        + row(140, "medium", "", "[17]")
        + row(155000, "small", "Rock", "[12]")
    )
    table.write_text(header + "\ntrack_id" + "," * len(columns) + "\n" + lines)
    touch(tmp_path / "fma_small", "000/000002.mp3")
    by_name = by_id(recordings(tmp_path / "fma_small", "fma", table))
    assert {name: (track.captions, track.problem) for name, track in by_name.items()} == {
        "000002": (("Hip-Hop",), ""),
        "155000": (("Rock",), "missing"),
    }
    (table.parent / "genres.csv").write_text(
        "genre_id,#tracks,parent,title,top_level\n21,1,0,Hip-Hop,21\n10,1,0,Pop,10\n17,1,0,Folk,17\n"
    )
    touch(tmp_path / "music", "000/000140.mp3")
    by_name = by_id(recordings(tmp_path / "music", "fma", table))
    assert by_name["000002"].tags == {"genre": ["Hip-Hop", "Pop"]}
    assert (by_name["000140"].captions, by_name["000140"].problem) == (("Folk",), "")
    (table.parent / "genres.csv").unlink()
    table.write_text("track_id,title\n2,x\n3,y\n")
    with pytest.raises(UserError, match="three lines"):
        recordings(tmp_path / "music", "fma", table)


def test_song_describer(tmp_path: Path) -> None:
    table = tmp_path / "song_describer.csv"
    table.write_text(
        "caption_id,track_id,caption,is_valid_subset,familiarity,artist_id,album_id,path,duration\n"
        '859,1004034,"An electronic tune, fast",True,0,368880,118196,34/1004034.mp3,202.5\n'
        "860,1004034,Synths.,False,0,368880,118196,34/1004034.mp3,202.5\n"
        "990,1007274,Guitar.,True,1,429137,118548,74/1007274.mp3,140.2\n"
    )
    touch(tmp_path / "audio", "34/1004034.2min.mp3")
    by_name = by_id(recordings(tmp_path / "audio", "song-describer", table))
    assert by_name["34/1004034.mp3"].captions == ("An electronic tune, fast", "Synths.")
    assert by_name["34/1004034.mp3"].path.endswith("34/1004034.2min.mp3")
    assert by_name["74/1007274.mp3"].problem == "missing"


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown; there are files, audiofolder"):
        recordings(tmp_path, "folders", None)
    with pytest.raises(UserError, match="no such folder"):
        recordings(tmp_path / "none", "files", None)
    with pytest.raises(UserError, match="holds no audio"):
        recordings(tmp_path, "files", None)
    with pytest.raises(UserError, match="needs its table"):
        recordings(tmp_path, "fma", None)
    with pytest.raises(UserError, match=r"no metadata\.csv"):
        recordings(tmp_path, "audiofolder", None)
    (tmp_path / "d.csv").write_text("path,text\na,b\n")
    with pytest.raises(UserError, match="no column 'file'"):
        read_captions(tmp_path / "d.csv")
    (tmp_path / "d.jsonl").write_text('{"file": "a", "caption": "b"}\n{"file": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        read_captions(tmp_path / "d.jsonl")
    (tmp_path / "m.csv").write_text("ytid,start_s,end_s,aspect_list,caption\na,0,10,__import__('os'),c\n")
    with pytest.raises(UserError, match=r"m\.csv, line 2: .* is not a list"):
        recordings(tmp_path, "musiccaps", tmp_path / "m.csv")
