"""The `melody` command: its list, its help without any extra, and what it says when a package is missing."""

import os
import subprocess
import sys

import pytest

from melody_jax import __version__, cli
from melody_jax.errors import UserError
from melody_jax.extras import EXTRAS, install_command, install_hint

HELP = """
import contextlib, io, sys
from melody_jax import cli
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
for arguments in [[name, "--help"] for name in cli.COMMANDS] + [["train", "lm_tiny", "--help"]]:
    output = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(output):
        cli.run(arguments)
    assert output.getvalue().startswith(f"usage: melody {{arguments[0]}} "), arguments
    headings = [line for line in output.getvalue().splitlines() if line.endswith(":") and line[0] != " "]
    assert "options:" not in headings and len(headings) > 1 or arguments == ["train", "--help"], headings
try:
    cli.run(["train", "lm_tiny", "--data.folder", "nowhere"])
except ValueError as error:
    print(error)
"""


def test_help_of_every_command_needs_no_extra() -> None:
    script = HELP.format(missing=sorted(EXTRAS))
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_list_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run([])
    words = capsys.readouterr().out
    assert words.startswith("usage: melody COMMAND [options]")
    assert all(f"  {name} " in words for name in cli.COMMANDS)
    cli.run(["--version"])
    assert capsys.readouterr().out == f"melody_jax {__version__}\n"


def test_unknown_commands_are_one_line() -> None:
    with pytest.raises(UserError, match=r"unknown command 'trian'; did you mean train\?"):
        cli.run(["trian"])
    with pytest.raises(UserError, match="unknown command 'x'; there are "):
        cli.run(["x"])
    with pytest.raises(UserError, match="the config is missing: melody train CONFIG"):
        cli.run(["train", "--steps", "3"])


def test_a_missing_package_names_one_extra() -> None:
    assert install_hint("grain.python") == (
        f"grain is not installed; the extra 'train' provides it: {install_command('train')}"
    )
    assert "the extra 'ablate' provides it" in install_hint("grain", "ablate")
    assert "the extra 'beam' provides it" in install_hint("apache_beam", "evaluate")
    assert install_hint("torch") == "the package torch is not installed"
