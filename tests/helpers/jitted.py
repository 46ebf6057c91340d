"""The networks with their functions jitted: one compilation instead of one for every little operation."""

import inspect
from types import ModuleType
from typing import Any

import jax

from melody_jax.models import denoiser as _denoiser
from melody_jax.models import lm as _lm
from melody_jax.models import vae as _vae


class Jitted:
    """A module of `melody_jax.models`; what takes parameters, or makes them, is jitted with its config static."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        arguments = inspect.signature(value).parameters if inspect.isfunction(value) else ()
        runs = name == "init" or "params" in arguments
        setattr(self, name, jax.jit(value, static_argnames="config") if runs else value)
        return getattr(self, name)


denoiser, lm, vae = Jitted(_denoiser), Jitted(_lm), Jitted(_vae)
