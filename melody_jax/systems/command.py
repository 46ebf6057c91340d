"""`melody sample "PROMPT" [options]`: writes clips, the clips of a prompt file, or a stream.

melody sample "a calm solo piano piece" --seconds 10 --seed 0 --out song.wav
melody sample --prompts prompts.jsonl --out clips
melody sample "a calm solo piano piece" --stream | ffplay -f s16le -ar 24000 -ch_layout mono -i -
"""

import os
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melody_jax import audio, files, hub, object_store
from melody_jax.errors import UserError
from melody_jax.options import option
from melody_jax.sampling import notation
from melody_jax.sampling.prompt_file import read_prompt_file
from melody_jax.sampling.request import PromptLike, Request, has_changes, make_requests
from melody_jax.sampling.settings import MAX_SECONDS, MODEL, WHAT, WHERE, ClipSettings, shared_settings
from melody_jax.systems import SYSTEMS, load

if TYPE_CHECKING:  # `--help` does not need the networks
    from collections.abc import Callable

    from melody_jax.sampling.batch_job import BatchJobConfig
    from melody_jax.sampling.system import System


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptOptions:
    """What a clip is made of."""

    prompt: str = option("", group=WHAT)
    """Description of the music; "--prompt" may be left out. May be empty with --source or --audio-prompt."""
    seconds: float | None = option(None, above=0, most=MAX_SECONDS)
    """Length in seconds. Default: 10, or endless with --stream."""
    blend: tuple[str, ...] = ()
    """Further texts with their weights, relative to PROMPT's 1: "sad cello=0.5" "drums=-0.3"."""
    audio_prompt: Path | None = None
    """A sound file, one second to ten minutes long, whose style is blended into the prompt (not its notes)."""
    audio_weight: float = option(0.5, least=-10, most=10)
    """Weight of --audio-prompt, relative to PROMPT's 1."""
    story: tuple[str, ...] = ()
    """Prompts that take over later, with their times in seconds: "20=fast techno" "40=calm piano"."""
    source: Path | None = None
    """A sound file to edit, one second to ten minutes long. It is continued up to --seconds, or changed by
    --regions, --strength or --keep-tokens."""
    melody: Path | None = None
    """A sound file, one second to ten minutes long, with a hummed, sung or played tune that the music follows, with
    --system musiclm."""
    regions: tuple[str, ...] = ()
    """Seconds of the source to regenerate, such as 3-5 12.5-14. The rest stays bit-identical."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig(ClipSettings, PromptOptions):
    """Makes music from a text prompt with a released model. `--source` edits a sound file of yours."""

    out: Path = option(Path("song.wav"), group=WHERE)
    """File to write: .wav, .flac, .ogg or .mp3. With --batch above 1: song-0.wav, song-1.wav, ...; with
    --prompts: a folder. Missing folders are created."""
    stream: bool = False
    """Writes 16-bit samples to standard output while the music is made, to pipe into a player; the model's sample rate
    (24 kHz) and channels, which alternate."""
    batch: int | None = option(None, least=1, most=1024)
    """Clips to make from the prompt (default 1); with --prompts, clips made at a time (default 16)."""
    prompts: Path | None = None
    """A prompt file in place of PROMPT: one JSON object per line (docs/service.md). Clips that exist in --out
    are not made again."""
    suffix: str = option(".wav", choices=tuple(audio.FORMATS))
    """Format of the clips of a prompt file."""
    process: int = option(0, least=0)
    """Index of this process, from 0, if several share the prompt file."""
    processes: int = option(1, least=1)
    """Number of processes that share the prompt file."""
    beam: tuple[str, ...] = ()
    """Apache Beam options without their dashes, such as runner=FlinkRunner flink_master=host:8081: Beam's workers make
    the clips of a prompt file, in --processes parts. Needs the extra beam."""
    replace: bool = False
    """Makes clips of a prompt file again if their settings have changed."""

    model: str = option("mini", group=MODEL)
    """Name of a released model, or owner/name of one on the Hugging Face Hub, as owner/name@revision if it is not the
    newest (docs/hub.md)."""
    folder: Path | None = None
    """Folder of released models. Default: those that ship with the package."""
    system: str = option("melody", choices=tuple(SYSTEMS))
    """Kind of the model: melody; musiclm or audiolm, which have no diffusion (audiolm takes no prompt); noise2music or
    mousai, which have no language model."""
    distilled: bool = False
    """Uses the distilled diffusion, for few steps: --distilled --steps 2 --solver pingpong."""


def sample(config: SampleConfig) -> None:
    """Writes clips, streams one, or runs a batch job.

    Raises:
        UserError: options exclude each other, the prompt, source or model is not valid, or a file cannot be written.
    """
    if config.distilled and config.system != "melody":
        raise UserError(f"--distilled needs --system melody; {config.system} does not have it")
    _refuse_unused(config)
    if config.prompts is not None:
        _run_prompt_file(config, config.prompts)
    elif config.stream:
        _stream(config)
    else:
        _write_clips(config)


def _refuse_unused(config: SampleConfig) -> None:
    """Raises `UserError` for an option that has no effect without another."""
    partners = {
        "suffix": "prompts",
        "process": "prompts",
        "processes": "prompts",
        "beam": "prompts",
        "replace": "prompts",
        "audio_weight": "audio_prompt",
    }
    for name, partner in partners.items():
        if getattr(config, name) != getattr(SampleConfig, name) and getattr(config, partner) is None:
            options = (f"--{field.replace('_', '-')}" for field in (name, partner))
            raise UserError(" needs ".join(options))
    if config.source is not None and has_changes(vars(config)) and config.seconds is not None:
        raise UserError(
            f"--seconds is {config.seconds:g}; with --regions, --strength or --keep-tokens a clip is as long as its "
            "source, leave it out"
        )
    if config.stream and config.out != SampleConfig.out:
        raise UserError(f"--out is {config.out}; --stream writes to standard output, leave --out away")


def _settings(config: SampleConfig) -> dict[str, Any]:
    """The options of every clip, as `make_requests` takes them."""
    settings = shared_settings(config, ClipSettings)
    settings["source"] = config.source
    settings["melody"] = config.melody
    settings["regions"] = tuple(notation.parse_region(region) for region in config.regions)
    settings["story"] = tuple(notation.parse_scene(scene) for scene in config.story)
    if not config.stream:
        settings["seconds"] = Request.seconds
    if config.seconds is not None:
        settings["seconds"] = config.seconds
    return settings


def _prompt(config: SampleConfig) -> PromptLike | None:
    """The prompt; None if there is none and the system may not need one."""
    if config.system != "melody" and not (config.prompt or config.blend or config.audio_prompt):
        return None
    return notation.blend(config.prompt, config.blend, config.audio_prompt, config.audio_weight)


def _load(config: SampleConfig, needs_tokenizer: bool) -> "System":
    """The model, with its tokenizer if there are sources to encode."""
    from melody_jax.runtime import enable_compile_cache
    from melody_jax.sampling.plan import NETWORKS

    enable_compile_cache()
    options: dict[str, Any] = {}
    if config.system == "melody":
        networks = (*NETWORKS, "tokenizer") if needs_tokenizer else NETWORKS
        options = {"networks": networks, "distilled": config.distilled}
    return load(config.model, system=config.system, folder=config.folder, **options)


def _write_clips(config: SampleConfig) -> None:
    """Makes the clips and prints what was written and how long it took."""
    count = 1 if config.batch is None else config.batch
    audio.file_format(config.out)
    paths = [config.out]
    if count > 1:
        paths = [config.out.with_stem(f"{config.out.stem}-{i}") for i in range(count)]
    requests: list[Request] = make_requests([_prompt(config)] * count, _settings(config))
    files.check_folder(config.out.parent)
    for path in paths:
        (audio.check_writable if config.out.parent.is_dir() else audio.file_format)(path)
    system = _load(config, config.source is not None)
    system.check_inputs(requests[0])
    files.make_folder(config.out.parent)
    system.warn_of_unknown_words(requests)
    system.warn_of_unused_scenes(requests)
    started = time.perf_counter()
    waves = system.run(requests, progress=True)
    seconds = time.perf_counter() - started
    for path, wave in zip(paths, waves, strict=True):
        audio.write(path, wave, system.sample_rate)
    length = sum(map(len, waves)) / system.sample_rate
    print(
        f"{', '.join(map(_described, paths))}: {length:g} s of music in {seconds:.1f} s (compiling included)"
    )


def _described(path: Path) -> str:
    """The path, and the file that was written if it is a symbolic link."""
    return f"{path} (a link to {os.path.realpath(path)})" if path.is_symlink() else str(path)


def _stream(config: SampleConfig) -> None:
    """Writes samples to standard output until they end or the reader closes it, then prints their duration."""
    if config.batch not in (None, 1):
        raise UserError(f"batch is {config.batch}; a stream is one clip: omit --batch")
    if sys.stdout.isatty() or sys.stdout.name == os.devnull:  # closed: `runtime.open_standard_streams`
        raise UserError("--stream writes samples to standard output; pipe it into a player or a file")
    settings = _settings(config)
    prompt = _prompt(config)
    samples = 0
    system = _load(config, needs_tokenizer=False)
    for part in system.stream(prompt, **settings):
        try:
            sys.stdout.buffer.write(audio.to_int16(part, "stream").tobytes())
            sys.stdout.buffer.flush()
        except OSError as error:
            # Python would report the error again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):
                break
            raise UserError(f"standard output cannot be written ({error.strerror})") from error
        samples += len(part)
    print(f"{samples / system.sample_rate:g} s of music streamed", file=sys.stderr)


def _run_prompt_file(config: SampleConfig, prompts: Path) -> None:
    """Makes the clips of a prompt file that are missing and prints how many."""
    for name in ("prompt", "audio_prompt", "blend", "story", "stream"):
        if getattr(config, name):
            raise UserError(
                f"--{name.replace('_', '-')} cannot be combined with --prompts; put blends and stories into "
                "the prompt file"
            )
    if config.out.suffix.lower() in audio.FORMATS:
        raise UserError(f"--out is {config.out}; with --prompts it must name a folder")
    from melody_jax.sampling.batch_job import BatchJobConfig, run_batch_job, share

    job = BatchJobConfig(
        prompts=prompts,
        out=config.out,
        batch=16 if config.batch is None else config.batch,
        suffix=config.suffix,
        process=config.process,
        processes=config.processes,
        replace=config.replace,
    )
    lines = read_prompt_file(prompts, _settings(config))
    if not object_store.is_remote(config.out):
        files.check_folder(config.out)
    config = replace(config, model=hub.pin(config.model, config.folder))  # one commit for all workers
    load_system = partial(_load, config, any(line.request.source is not None for line in lines))
    if config.beam:
        written = _run_with_beam(config, job, load_system)
        existing = len(lines) - written
    else:
        written = run_batch_job(load_system(), job, lines)
        existing = len(share(lines, job)) - written
    out = object_store.display(config.out)
    if not written:
        print(f"{out}: all {existing} clips exist already")
    elif existing:
        print(f"{out}: {written} clips made, {existing} existed already")
    else:
        print(f"{out}: {written} clips made")


def _run_with_beam(config: SampleConfig, job: "BatchJobConfig", load_system: "Callable[[], System]") -> int:
    """Makes the clips by Apache Beam and returns their number."""
    if config.process:
        raise UserError(
            f"--process is {config.process}; with --beam every worker makes all parts that it is given"
        )
    from melody_jax.sampling.beam_job import run_shares
    from melody_jax.sampling.manifest import read_entries

    before = read_entries(config.out)
    run_shares(load_system, job, _settings(config), config.beam)
    return sum(before.get(name) != entry for name, entry in read_entries(config.out).items())
