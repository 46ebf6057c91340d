"""Files are written whole or not at all, and only regular files of bounded size are read."""

import contextlib
import os
import subprocess
import sys

import pytest

from melody_jax import files
from melody_jax.errors import UserError


def test_an_error_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    files.write_bytes(path, b"old")
    with contextlib.suppress(KeyError), files.replace_file(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_umask_decides_who_may_read(tmp_path):
    previous = os.umask(0o027)
    try:
        files.write_bytes(tmp_path / "a", b"", sync=True)
    finally:
        os.umask(previous)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    target = tmp_path / "folder" / "target"
    target.parent.mkdir()
    target.write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to(target)
    files.write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_names_as_long_as_the_file_system_takes(tmp_path):
    path = tmp_path / ("é" * 127)
    files.write_bytes(path, b"x")
    assert path.read_bytes() == b"x"


def test_what_may_not_be_replaced_is_named(tmp_path):
    read_only = tmp_path / "read_only"
    read_only.write_bytes(b"old")
    read_only.chmod(0o444)
    os.mkfifo(tmp_path / "pipe")
    cases = {
        read_only: "the file is read-only",
        tmp_path: "is a folder",
        tmp_path / "pipe": "not a regular file",
        tmp_path / "missing" / "a": "does not exist",
    }
    for path, message in cases.items():
        with pytest.raises(UserError, match=message):
            files.write_bytes(path, b"new")
    assert read_only.read_bytes() == b"old"
    with pytest.raises(UserError, match="is a file, it must be a folder"):
        files.make_folder(read_only / "under")


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"12345")
    cases = {
        tmp_path / "pipe": "not a regular file",
        "/dev/zero": "not a regular file",
        tmp_path: "is a folder",
        tmp_path / "large": "5 bytes, at most 4 are read",
        tmp_path / "missing": "No such file",
        "nul\0": "null byte",
    }
    for path, message in cases.items():
        with pytest.raises(UserError, match=message):
            files.read_bytes(path, max_bytes=4)
    assert files.read_bytes(tmp_path / "large", max_bytes=5) == b"12345"


def test_text_and_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(path) == {"a": 1}
    for content, message in ((b"\xff", "not UTF-8 at byte 0"), (b"{", "not JSON"), (b"9" * 5000, "not JSON")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            files.read_json(path)
    with pytest.raises(UserError, match="line 3: not JSON"):
        files.parse_json("[" * 100_000, "line 3")


def test_only_a_line_feed_ends_a_line():
    text = '{"a": "x\u2028y\u0085z"}\r\n\n{}\n'
    assert files.split_lines(text) == ['{"a": "x\u2028y\u0085z"}', "", "{}"]
    assert files.split_lines("a\nb") == ["a", "b"]
    assert files.split_lines("") == []


def test_one_process_holds_a_lock(tmp_path):
    path = tmp_path / "lock"
    other = f"from melody_jax import files; print(files.lock(open({str(path)!r}, 'a')))"
    with path.open("a") as file:
        assert files.lock(file)
        answer = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=True)
        assert answer.stdout == "False\n"
    with path.open("a") as file:
        assert files.lock(file)
