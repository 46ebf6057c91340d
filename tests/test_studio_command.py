"""`melody studio`: what the command refuses before it loads the networks."""

import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
from helpers.studio import serve

from melody_jax import cli
from melody_jax.errors import UserError
from melody_jax.studio import command
from melody_jax.studio.command import StudioConfig

TOKEN = "a-token-of-a-test"


class TestCommand:
    """What is refused before a network is loaded."""

    @pytest.fixture(autouse=True)
    def nothing_loads(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def load_system(_: Any) -> Any:
            raise AssertionError("the networks are loaded")

        monkeypatch.setattr(command, "load_system", load_system)
        monkeypatch.delenv(command.TOKEN_VARIABLE, raising=False)
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org"])
    def test_other_machines_need_a_token(self, host: str):
        with pytest.raises(UserError, match="--token-file"):
            cli.run(["studio", "--host", host])
        assert not os.listdir()

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
    def test_the_loopback_needs_none(self, host: str):
        assert command.make_policy(StudioConfig(host=host)).token is None

    def test_the_token_of_a_file(self, tmp_path: Path):
        file = tmp_path / "token"
        file.write_text(f"{TOKEN}\n")
        policy = command.make_policy(
            StudioConfig(host="0.0.0.0", token_file=file, names=("Studio.example.org",))
        )
        assert policy.token == TOKEN
        assert {"studio.example.org", socket.gethostname().lower()} <= policy.names
        assert TOKEN not in repr(policy)
        file.write_text("short")
        with pytest.raises(UserError, match="16"):
            command.make_policy(StudioConfig(token_file=file))
        with pytest.raises(UserError, match="cannot be read"):
            command.make_policy(StudioConfig(token_file=tmp_path / "missing"))

    def test_the_token_of_the_environment(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv(command.TOKEN_VARIABLE, TOKEN)
        assert command.make_policy(StudioConfig(host="::")).token == TOKEN

    def test_a_port_in_use(self):
        with command.listen("127.0.0.1", 0) as listener:
            port = listener.getsockname()[1]
            with pytest.raises(UserError, match=f"--port {port}: Address already in use"):
                cli.run(["studio", "--port", str(port), "--project", "project"])
        assert not Path("project").exists()

    def test_a_project_in_use(self, tmp_path: Path):
        with serve(tmp_path / "project"), pytest.raises(UserError, match="another studio"):
            cli.run(["studio", "--port", "0", "--project", str(tmp_path / "project")])

    def test_a_host_of_another_machine(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv(command.TOKEN_VARIABLE, TOKEN)
        with pytest.raises(UserError, match=r"--host 203\.0\.113\.1"):
            cli.run(["studio", "--host", "203.0.113.1"])

    def test_distilled_needs_melody(self):
        with pytest.raises(UserError, match="--system melody"):
            cli.run(["studio", "--distilled", "--system", "musiclm"])

    def test_the_help_needs_no_extra(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ):
        for name in ("fastapi", "uvicorn", "gradio", "prometheus_client"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(SystemExit):
            cli.run(["studio", "--help"])
        assert "--token-file" in capsys.readouterr().out

    def test_without_the_extra_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delitem(sys.modules, "melody_jax.studio.serve", raising=False)
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        with pytest.raises(UserError, match="extra 'studio' provides it"):
            cli.run(["studio", "--project", "project"])
        assert not Path("project").exists()
