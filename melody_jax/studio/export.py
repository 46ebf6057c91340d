"""What leaves a project: one clip with tags, or a zip from which every clip can be made again to the bit.

clips/ID.flac      the clips
sources/...        the sounds that they were made from
manifest.jsonl     a prompt file for `melody sample --prompts`; manifest-2.jsonl, ... for other releases
commands.sh        one `melody sample` for each clip that the command line can describe
README.md          how to use them
"""

import io
import json
import shlex
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melody_jax import __version__, audio
from melody_jax.studio.project import Project
from melody_jax.studio.takes import Release, Take, prompt_line, source_names

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

CHUNK = 1 << 20
"""Bytes of a file that are read at once."""
TAG_LENGTH = 2000
"""Longest text of a tag, characters."""
EARLIEST = (1980, 1, 1, 0, 0, 0)
"""Time of all entries: a zip of the same takes has the same bytes."""


def export_clip(project: Project, take_id: str, suffix: str) -> bytes:
    """A clip as .wav, .flac, .ogg or .mp3, with its title, prompt and seed as tags.

    The samples of .wav and .flac are those of the project's file. Raises `UnknownTake`, and `UserError` for another
    suffix.
    """
    take = project.take(take_id)
    return audio.encode(
        project.read(take_id), take.sample_rate, audio.file_format(f"clip{suffix}"), "the clip", tags(take)
    )


def tags(take: Take) -> dict[str, str]:
    """The title of a take, its prompt and seed as a comment, and the release that made it."""
    prompt = take.settings["prompt"]
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
    return {
        "title": take.title,
        "comment": f"seed {take.settings['seed']}; prompt: {text}"[:TAG_LENGTH],
        "software": f"melody_jax {__version__}, {take.system} {take.release} {take.model_hash}",
    }


def export_zip(project: Project, take_ids: Sequence[str] | None = None) -> Iterator[bytes]:
    """The bytes of a zip of takes, all by default, as they are written; no more than a file's part is in memory.

    Takes that are deleted meanwhile are left out. Raises `UnknownTake` at once.
    """
    takes = project.takes() if take_ids is None else [project.take(take_id) for take_id in take_ids]
    return _zip(project, list({take.id: take for take in takes}.values()))


def _zip(project: Project, takes: list[Take]) -> Iterator[bytes]:
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", allowZip64=True) as archive:
        written = []
        for take in takes:
            path = project.takes_folder / take.file
            if path.is_file():
                yield from _add_file(archive, sink, f"clips/{take.file}", path)
                written.append(take)
        for name in sorted({name for take in written for name in source_names(take.settings)}):
            yield from _add_file(archive, sink, f"sources/{name}", project.source(name))
        for name, text in _texts(written).items():
            archive.writestr(_entry(name, zipfile.ZIP_DEFLATED), text)
            yield sink.take()
    yield sink.take()


class _Sink(io.RawIOBase):
    """A file that a zip is written to, and whose bytes are taken away meanwhile; it cannot seek."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer") -> int:
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def take(self) -> bytes:
        """The bytes since the last call."""
        parts = self._parts
        self._parts = []
        return b"".join(parts)


def _add_file(archive: zipfile.ZipFile, sink: _Sink, name: str, path: Path) -> Iterator[bytes]:
    """Adds a file without compression; yields what is written."""
    with open(path, "rb") as file, archive.open(_entry(name), "w", force_zip64=True) as entry:
        while data := file.read(CHUNK):
            entry.write(data)
            yield sink.take()


def _entry(name: str, method: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, EARLIEST)
    entry.compress_type = method
    entry.external_attr = 0o644 << 16
    return entry


def _texts(takes: list[Take]) -> dict[str, str]:
    """The prompt files, the commands and the README: name -> content."""
    groups: dict[tuple[Release, str], list[Take]] = {}
    for take in reversed(takes):  # the newest release has the first prompt file
        groups.setdefault((take.networks, Path(take.file).suffix), []).insert(0, take)
    texts = {}
    jobs = []
    for number, ((release, suffix), members) in enumerate(groups.items(), start=1):
        name = "manifest.jsonl" if number == 1 else f"manifest-{number}.jsonl"
        lines = [json.dumps(prompt_line(take, "sources/"), ensure_ascii=False) for take in members]
        texts[name] = "".join(f"{line}\n" for line in lines)
        words = ["melody", "sample", "--prompts", name, "--out", "again", "--batch", "1", "--suffix", suffix]
        jobs.append(shlex.join([*words, *_release_words(release)]))
    commands = [(take, command_words(take)) for take in takes]
    written = [shlex.join([*words, "--out", f"again/{take.file}"]) for take, words in commands if words]
    texts["commands.sh"] = "".join(f"{line}\n" for line in ["#!/bin/sh", "set -e", *written])
    left_out = [take.id for take, words in commands if not words]
    return texts | {"README.md": _readme(jobs, left_out)}


def _readme(jobs: list[str], left_out: list[str]) -> str:
    note = ""
    if left_out:
        note = f"\nOnly the prompt file can describe these: {', '.join(left_out)}.\n"
    listed = "\n".join(jobs)
    return f"""# Clips of melody_jax {__version__}

`clips/` has the clips, `sources/` the sounds that some were made from. These commands, run in this folder, make all
clips again in the folder `again`:

```sh
{listed}
```

`commands.sh` has one command for each clip.
{note}
On the machine that made them, with the same release and as many threads, the files are equal to the bit. On another
machine the samples differ by about 1e-4. If a release does not ship with the package, add `--folder FOLDER`.
"""


def command_words(take: Take) -> list[str] | None:
    """The words of the `melody sample` command that makes a take, without --out; sources are in `sources/`.

    None if the command line has no notation for its prompt, as for two sounds in a blend.
    """
    settings = prompt_line(take, "sources/")
    del settings["id"]
    prompt = _prompt_words(settings.pop("prompt", ""))
    story = [f"{scene['at']!r}={scene['prompt']}" for scene in settings.pop("story", [])]
    scenes = take.settings.get("story") or []
    regions = [f"{begin!r}-{end!r}" for begin, end in settings.pop("regions", [])]
    is_exact = all(isinstance(scene["prompt"], str) for scene in scenes) and not any(
        "e" in one for one in regions
    )
    if prompt is None or not is_exact:
        return None
    words = ["melody", "sample", *prompt]
    words += ["--story", *story] if story else []
    words += ["--regions", *regions] if regions else []
    for name, value in settings.items():
        words += _option_words(name, value)
    words += _release_words(take.networks)
    return None if any("\0" in word for word in words) else words


def _release_words(release: Release) -> list[str]:
    words = ["--model", release.name]
    words += ["--system", release.system] if release.system != Release.system else []
    return words + (["--distilled"] if release.distilled else [])


def _option_words(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [option] if value else [f"--no-{name.replace('_', '-')}"]
    text = value if isinstance(value, str) else repr(value)
    return [f"{option}={text}"] if text.startswith("-") or not text else [option, text]


def _prompt_words(prompt: Any) -> list[str] | None:
    """A prompt, or the parts of a blend: a text of weight 1, a sound and further texts, as `notation.blend` joins them.

    None for other blends.
    """
    parts = [] if isinstance(prompt, str) else list(prompt or [])
    text = prompt if isinstance(prompt, str) else ""
    if parts and parts[0]["text"] and parts[0]["weight"] == 1:
        text = parts.pop(0)["text"]
    words = [] if not text else _option_words("prompt", text) if text.startswith("-") else [text]
    if parts and parts[0]["audio"]:
        sound = parts.pop(0)
        words += ["--audio-prompt", sound["audio"], *_option_words("audio_weight", sound["weight"])]
    if any(part["audio"] or part["text"].startswith("-") for part in parts):
        return None
    return words + (["--blend", *(f"{part['text']}={part['weight']!r}" for part in parts)] if parts else [])
