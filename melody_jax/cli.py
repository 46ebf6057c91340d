"""The `melody` command. Each subcommand is a configuration and a function that takes it, both imported on demand."""

import difflib
import importlib
import sys
from typing import Any, NamedTuple

from melody_jax import __version__
from melody_jax.errors import UserError, cli_entry
from melody_jax.extras import install_hint
from melody_jax.options import parse_options
from melody_jax.runtime import tune_allocator


class Command(NamedTuple):
    """A subcommand. `function` and `config` are written "module:name", the module inside melody_jax."""

    function: str
    """Takes the configuration or, if `config` is empty, the list of arguments."""
    config: str
    """Dataclass whose fields are the options; importable without any extra. Empty: the function parses the
    arguments."""
    summary: str
    positional: str = ""
    """Field set by the argument that has no option name, at any position."""
    extra: str = ""
    """Extra of the package that the command needs; empty: the base installation is enough."""


COMMANDS: dict[str, Command] = {
    "sample": Command(
        "systems.command:sample",
        "systems.command:SampleConfig",
        "make music from a prompt",
        positional="prompt",
    ),
    "train": Command("training.command:main", "", "train one network", extra="train"),
    "compose": Command(
        "data.compose_corpus:compose_corpus",
        "data.compose_corpus:ComposeConfig",
        "compose a captioned corpus into audio shards",
        extra="compose",
    ),
    "prepare": Command(
        "data.prepare:prepare",
        "data.prepare:PrepareConfig",
        "turn recordings into audio shards, and audio shards into features",
        extra="beam",
    ),
    "import": Command(
        "training.import_published:import_network",
        "training.import_published:ImportConfig",
        "import published weights: CLAP, MERT, wav2vec 2.0",
        extra="train",
    ),
    "export": Command(
        "training.export:export", "training.export:ExportConfig", "release a trained network", extra="train"
    ),
    "push": Command(
        "training.push:push",
        "training.push:PushConfig",
        "publish a release on the Hugging Face Hub",
        extra="hub",
    ),
    "export-sampler": Command(
        "sampling.export_sampler:export_sampler",
        "sampling.export_sampler:SamplerExportConfig",
        "write a standalone sampler that does not need this package",
    ),
    "evaluate": Command(
        "evaluation.evaluate:evaluate",
        "evaluation.evaluate_config:EvaluateConfig",
        "compare clips, or a model, with real music",
        extra="evaluate",
    ),
    "diagnose": Command(
        "evaluation.diagnose:diagnose",
        "evaluation.diagnose:DiagnoseConfig",
        "find the network that loses most of the music",
        extra="evaluate",
    ),
    "ablate": Command(
        "ablation.ablate:ablate",
        "ablation.runs:AblateConfig",
        "run a study's paired runs and report on them",
        positional="study",
        extra="ablate",
    ),
    "replay": Command(
        "training.replay:replay",
        "training.replay:ReplayConfig",
        "repeat a training step that was not finite",
        positional="bundle",
        extra="train",
    ),
    "studio": Command(
        "studio.command:studio",
        "studio.command:StudioConfig",
        "make music in the browser, or through an HTTP API",
        extra="studio",
    ),
    "nfe": Command(
        "systems.nfe:nfe", "systems.nfe:NFEConfig", "count network evaluations, compared with MusicLM"
    ),
    "compile-tpu": Command(
        "scale.compile_tpu:compile_tpu",
        "scale.compile_tpu:CompileConfig",
        "compile a training step for TPUs without having them",
        extra="tpu",
    ),
}
ALLOCATOR_COMMANDS = ("sample", "studio", "train")
"""Commands that restart once with another memory allocation, before JAX is imported (`runtime.tune_allocator`)."""


@cli_entry
def main() -> None:
    """Runs the subcommand that the command line names; each field of its configuration is an option."""
    if sys.argv[1:2] and sys.argv[1] in ALLOCATOR_COMMANDS:
        tune_allocator()
    run(sys.argv[1:])


def run(arguments: list[str]) -> None:
    """Runs `arguments`, such as ["compose", "--out", "corpus"].

    Raises:
        UserError: the command or an option is unknown, or a package of an extra is not installed.
    """
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(usage())
        return
    if name == "--version":
        print(f"melody_jax {__version__}")
        return
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}; {hint}")
    try:
        _run_command(name, COMMANDS[name], arguments[1:])
    except ModuleNotFoundError as error:
        if (error.name or "melody_jax").startswith("melody_jax"):
            raise
        raise UserError(install_hint(error.name or "", COMMANDS[name].extra)) from error


def usage() -> str:
    """The help text: one line per command."""
    lines = ["usage: melody COMMAND [options]", "", "`melody COMMAND --help` lists the options.", ""]
    lines += [f"  {name:<16}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "  --version       print the version"])


def _run_command(name: str, command: Command, arguments: list[str]) -> None:
    if not command.config:
        _attribute(command.function)(arguments)
        return
    config = _attribute(command.config)()
    config = parse_options(config, arguments, f"melody {name}", command.positional)
    _attribute(command.function)(config)


def _attribute(path: str) -> Any:
    """What "module:name" refers to."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(f"melody_jax.{module}"), name)
