"""The `melody` command: a subcommand is a configuration and the function that takes it, imported when asked for."""

import difflib
import importlib
import sys
from typing import Any, NamedTuple

from melody_jax import config
from melody_jax.errors import UserError, exits_cleanly


class Command(NamedTuple):
    """A subcommand: where it lives, the names of its configuration dataclass and of its function, what it does.

    `first` is the field that an argument without a name, right after the subcommand, is the value of.
    """

    module: str
    config: str
    function: str
    summary: str
    first: str = ""


COMMANDS: dict[str, Command] = {
    "compose": Command(
        "melody_jax.data.compose_corpus",
        "ComposeConfig",
        "compose_corpus",
        "compose a captioned corpus into shards",
    ),
    "prepare": Command(
        "melody_jax.data.prepare",
        "PrepareConfig",
        "prepare",
        "turn recordings into audio shards, and these into features",
    ),
    "import": Command(
        "melody_jax.training.import_published",
        "ImportConfig",
        "import_network",
        "use published weights: CLAP, MERT, wav2vec 2.0",
    ),
    "compile-tpu": Command(
        "melody_jax.scale.compile_tpu",
        "CompileConfig",
        "compile_tpu",
        "compile a training step for TPUs elsewhere",
    ),
    "replay": Command(
        "melody_jax.training.replay", "ReplayConfig", "replay", "repeat a step that was not finite"
    ),
    "export": Command("melody_jax.training.export", "ExportConfig", "export", "release a trained network"),
    "export-sampler": Command(
        "melody_jax.sampling.export_sampler",
        "SamplerExportConfig",
        "export_sampler",
        "write a sampler that plays without this package",
    ),
    "ablate": Command(
        "melody_jax.ablation.ablate",
        "AblateConfig",
        "ablate",
        "do a study's paired runs and report on it",
        "study",
    ),
    "evaluate": Command(
        "melody_jax.evaluation.evaluate",
        "EvaluateConfig",
        "evaluate",
        "measure clips, or a model, against real music",
    ),
    "diagnose": Command(
        "melody_jax.evaluation.diagnose",
        "DiagnoseConfig",
        "diagnose",
        "find the network that loses most of the music",
    ),
    "nfe": Command(
        "melody_jax.sampling.nfe", "NFEConfig", "nfe", "count passes through the networks beside MusicLM's"
    ),
}


@exits_cleanly
def main() -> None:
    """Runs the subcommand that the command line names; every field of its configuration is an option."""
    run(sys.argv[1:])


def run(arguments: list[str]) -> None:
    """Runs `arguments`, such as ["compose", "--out", "corpus"]. Raises `UserError` on an unknown command or option."""
    name, options = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help"):
        print("usage: melody COMMAND [--option value ...]   (melody COMMAND --help lists the options)\n")
        for command, entry in COMMANDS.items():
            print(f"  {command:<16}{entry.summary}")
        return
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}; {hint}")
    module: Any = importlib.import_module(COMMANDS[name].module)
    if COMMANDS[name].first and options and not options[0].startswith("-"):
        options = [f"--{COMMANDS[name].first}", *options]
    settings = config.override(getattr(module, COMMANDS[name].config)(), options)
    getattr(module, COMMANDS[name].function)(settings)
