"""Caption tables as people write them, and tables with changed, removed and repeated text."""

import functools
import json
from pathlib import Path

from hypothesis import strategies as st

from hostile.audio_bytes import mutated
from hostile.kind import Kind
from melody_jax.data import layouts

ROWS = (("a.wav", "slow, sad cello"), ("a.wav", "72 bpm"), ("sub/b.wav", 'so "called" jazz'))
NAMES = ("a.wav", "sub/b.wav", ".c.wav", "d.txt")
TABLES = {"files": ("c.csv", "c.jsonl"), "audiofolder": ("metadata.csv", "metadata.jsonl")}
COLUMNS = {"files": ("file", "caption"), "audiofolder": ("file_name", "text")}


def csv_table(columns: tuple[str, str], separator: str = ",") -> str:
    """A valid CSV with all values in quotes."""
    rows = (columns, *ROWS)
    return "".join(
        separator.join('"' + value.replace('"', '""') + '"' for value in row) + "\n" for row in rows
    )


def jsonl_table(columns: tuple[str, str]) -> str:
    return "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in ROWS)


def touch(folder: Path, *names: str) -> None:
    """Makes files that are audio by their names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"audio")


@st.composite
def _edited(draw: st.DrawFn, layout: str) -> tuple[str, bytes]:
    """Name and content of a table: a valid one with changed bytes, or text of its own."""
    name = draw(st.sampled_from(TABLES[layout]))
    columns = COLUMNS[layout]
    separator = draw(st.sampled_from((",", ";", "\t")))
    valid = (csv_table(columns, separator) if name.endswith(".csv") else jsonl_table(columns)).encode()
    if draw(st.booleans()):
        return name, draw(mutated(valid))
    names = st.sampled_from(
        (*NAMES, "../a.wav", "/etc/passwd", "A.WAV", "sub\\b.wav", "x" * 300, "a\0.wav", "")
    )
    valid_names = st.sampled_from(NAMES)
    captions = st.sampled_from(("slow", "slow, sad", '"', "\u60b2\u3057\u3044", "a\u2028b"))
    values = st.one_of(
        st.text(max_size=20), st.none(), st.integers(), st.lists(st.text(max_size=5), max_size=3), st.floats()
    )
    rows = draw(
        st.lists(
            st.tuples(st.one_of(*[valid_names] * 4, names, values), st.one_of(*[captions] * 6, values)),
            max_size=4,
        )
    )
    if name.endswith(".jsonl"):
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
        lines.extend(
            draw(st.lists(st.sampled_from(("", "[" * 100_000, "{}", "1" * 5_000, '"x"')), max_size=2))
        )
        return name, "\n".join(lines).encode("utf-8", "surrogatepass")
    text = "\n".join([separator.join(columns), *(separator.join(map(str, row)) for row in rows)])
    return name, text.encode("utf-8", "surrogatepass")


def read(layout: str, case: tuple[str, bytes], folder: Path) -> None:
    """Lists the recordings of a folder with the table; captions are text, and no file lies outside of the folder."""
    source = folder / "source"
    touch(source, *NAMES)
    (folder / "a.wav").write_bytes(b"outside")
    name, content = case
    table = (source if layout == "audiofolder" else folder) / name
    table.write_bytes(content)
    listed = layouts.recordings(source, layout, table if layout == "files" else None)
    for recording in listed:
        assert all(isinstance(caption, str) and caption.strip() for caption in recording.captions)
        if not recording.problem:
            assert Path(recording.path).resolve().is_relative_to(source.resolve())
            assert recording.size >= 0


KINDS = {
    f"captions, {layout}": Kind(
        strategy=functools.partial(_edited, layout), run=functools.partial(read, layout), cases=300
    )
    for layout in TABLES
}
