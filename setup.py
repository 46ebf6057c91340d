"""Copies configs/ into the wheel as melody_jax/configs; all else stands in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """`build_py` that also copies the configs; an editable installation reads them where they are."""

    def run(self) -> None:
        """Builds the package, then adds the configs."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "melody_jax" / "configs"
            shutil.copytree(
                "configs", target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )


setup(cmdclass={"build_py": BuildWithConfigs})
