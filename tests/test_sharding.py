"""Eight virtual devices, in a process of their own: a sharded run equals one device's and goes on with another mesh."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from melody_jax.errors import UserError
from melody_jax.roles import COLUMN, EMBEDDING, NORM, Role, find_role
from melody_jax.sharding import check_batch, make_mesh, parameter_spec, reader

SCRIPT = """
import sys, json, tempfile
sys.path[:0] = [{tests!r}]
import dataclasses, jax, numpy as np
from helpers.arrays import assert_same
from helpers.toy import run, toy_config
mesh = {mesh}
with tempfile.TemporaryDirectory() as folder:
    state = run(toy_config(folder, mesh=mesh, zero_stage={zero_stage}, steps=12, save_every=0))
    restored = run(toy_config(folder, mesh=(-1, 1, 1), steps=12, save_every=0))
    assert_same(restored, state)
    resumed = run(toy_config(folder, mesh=(-1, 1, 1), steps=14, save_every=0))
    options = dict(mesh=mesh, zero_stage={zero_stage}, steps=1, init_from=folder)
    started = run(toy_config(folder + "/started", **options))
specs_of = lambda state: [
    list(part["dense"]["kernel"].sharding.spec) for part in (state.params["model"], state.ema)
]
assert specs_of(started) == specs_of(state), specs_of(started)
kernel = state.params["model"]["dense"]["kernel"]
print(json.dumps([len(jax.devices()), specs_of(state), np.asarray(kernel).tolist(), int(resumed.step)]))
"""


STAGES = (
    "lm without a prefix",
    "coarse",
    "fine",
    "codec",
    "generator",
    "upsampler",
    "dmae",
    "latent_generator",
)
LOSSES = """
import sys, json, tempfile
from pathlib import Path
sys.path[:0] = [{tests!r}]
from helpers.stages import STAGES, Batches
from helpers.toy import rows
from melody_jax.config import TrainConfig
from melody_jax.training.loop import train
losses = {{}}
for name in {stages}:
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(stage=STAGES[name], steps=3, log_every=1, mesh={mesh}, workdir=folder)
        train(config, Batches(STAGES[name]), [next(Batches(STAGES[name], 10_000))], quiet=True)
        losses[name] = [row["loss"] for row in rows(Path(folder)) if "loss" in row]
print(json.dumps(losses))
"""


GATHERED = """
import json, jax
from melody_jax.collectives import read_collectives, total_by_kind
from melody_jax.config import load_config
from melody_jax.models.functional import count
from melody_jax.scale.programs import trace_step
from melody_jax.sharding import make_mesh
config = load_config("lm_tiny", ["--data.batch-size", "8", "--stage.model.dtype", "bfloat16"])
compiled = trace_step(config, make_mesh((1, 8, 1))).lower().compile()
received = total_by_kind(read_collectives(compiled.as_text()))["all-gather"][1]
weights = count(jax.eval_shape(config.stage.init, jax.random.key(0)))
print(json.dumps(received / (2 * weights * 7 / 8)))
"""


def run_on(devices: int, script: str, **fields: Any) -> tuple[Any, str]:
    """What a script prints in JSON, and its standard error, in a process with so many devices."""
    tests = Path(__file__).parent
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(tests.parent),
    }
    script = script.format(tests=str(tests), **fields)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def train_on(devices: int, mesh: tuple[int, int, int], zero_stage: int = 3) -> list:
    result, errors = run_on(devices, SCRIPT, mesh=mesh, zero_stage=zero_stage)
    note = (
        "resumes with processes 1, data 8, fsdp 1, tensor 1 after processes 1, data 2, fsdp 2, tensor 2, "
        f"ZeRO stage {zero_stage}: the"
    )
    assert (note in errors) == (devices == 8)
    return result


def test_sharded_equals_single_device() -> None:
    one = train_on(1, (1, 1, 1))
    for zero_stage, parameters in ((3, ["fsdp", "tensor"]), (1, [None, "tensor"])):
        eight = train_on(8, (2, 2, -1), zero_stage)
        assert (one[0], eight[0]) == (1, 8)
        assert eight[1] == [parameters, ["fsdp", "tensor"]]
        assert eight[3] == 14
        np.testing.assert_allclose(one[2], eight[2], rtol=1e-5, atol=1e-6)


def test_sharded_equals_single_device_in_every_stage_of_other_systems() -> None:
    """The later losses depend on the earlier steps' gradients."""
    one, _ = run_on(1, LOSSES, stages=STAGES, mesh=(1, 1, 1))
    eight, _ = run_on(8, LOSSES, stages=STAGES, mesh=(2, 2, 2))
    for name in STAGES:
        assert len(one[name]) == 3
        np.testing.assert_allclose(one[name], eight[name], rtol=1e-4, err_msg=name)


def test_kernels_are_gathered_once_in_each_direction() -> None:
    """In the type in which they are multiplied, bfloat16."""
    passes, _ = run_on(8, GATHERED)
    assert 1 < passes < 2.2


def test_specs_leave_out_what_does_not_divide() -> None:
    class Mesh:
        shape = {"data": 1, "fsdp": 2, "tensor": 4}  # noqa: RUF012

    mesh: jax.sharding.Mesh = Mesh()  # type: ignore[assignment]
    spec = jax.sharding.PartitionSpec
    assert parameter_spec(COLUMN, (6, 8), mesh) == spec("fsdp", "tensor")
    assert parameter_spec(COLUMN, (5, 6), mesh) == spec()
    assert parameter_spec(Role("row", stacked=True), (3, 8, 6), mesh) == spec(None, "tensor", "fsdp")
    assert parameter_spec(EMBEDDING, (8, 6), mesh) == spec("tensor", "fsdp")
    assert parameter_spec(Role("norm", stacked=True), (4, 8), mesh) == spec()
    assert parameter_spec(None, (), mesh) == spec()


def test_moments_have_the_role_of_their_parameter() -> None:
    roles = {"model": {"word_embedding": EMBEDDING, "norm": {"scale": NORM}}}
    path = ("opt_state", "inner_states", "model", "inner_state", "0", "mu", "model")
    assert find_role(roles, (*path, "word_embedding")) == EMBEDDING
    assert find_role(roles, (*path, "norm", "scale")) == NORM
    assert find_role(roles, ("opt_state", "count")) is None
    assert find_role(roles, (*path, "norm")) is None


def test_mesh_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="does not fit"):
        make_mesh((3, 5, 1))
    with pytest.raises(UserError, match="does not fit"):
        make_mesh((-1, -1, 1))


class SliceDevice:
    """What `make_mesh` asks of a device: in which slice it is."""

    platform, device_kind, process_index = "fake", "fake", 0

    def __init__(self, number: int) -> None:
        self.id, self.slice_index = number, number % 2


def test_only_data_crosses_slices() -> None:
    devices = [SliceDevice(n) for n in range(8)]
    placed = make_mesh((-1, 2, 1), devices).devices
    assert placed.shape == (4, 2, 1)
    assert [[device.slice_index for device in row] for row in placed[..., 0]] == [
        [0, 0],
        [0, 0],
        [1, 1],
        [1, 1],
    ]
    with pytest.raises(UserError, match="over 2 slices"):
        make_mesh((1, 8, 1), devices)


class HostDevice:
    def __init__(self, process: int) -> None:
        self.process_index = process


class HostMesh:
    """The shape of a mesh, and the process of each device, in the order of the devices."""

    def __init__(self, shape: tuple[int, int, int], processes: list[int]) -> None:
        self.shape = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
        self.devices = np.array([HostDevice(process) for process in processes]).reshape(shape)


@pytest.mark.parametrize(
    ("shape", "processes", "readers"),
    [
        ((8, 1, 1), [0, 0, 0, 0, 1, 1, 1, 1], [(0, 2), (1, 2)]),
        ((1, 8, 1), [1, 1, 0, 0, 2, 2, 3, 3], [(1, 4), (0, 4), (2, 4), (3, 4)]),
        ((1, 1, 2), [0, 1], [(0, 1), (0, 1)]),
        ((2, 1, 4), [0, 0, 1, 1, 2, 2, 3, 3], [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ((1, 2, 2), [0, 1, 0, 1], [(0, 1), (0, 1)]),
    ],
)
def test_processes_with_the_same_rows_are_one_reader(shape: Any, processes: Any, readers: Any) -> None:
    mesh: Any = HostMesh(shape, processes)
    assert [reader(mesh, process) for process in range(len(readers))] == readers


def test_processes_that_share_some_rows_are_refused() -> None:
    mesh: Any = HostMesh((3, 1, 2), [0, 0, 0, 1, 1, 1])
    with pytest.raises(UserError, match="share some of their items"):
        reader(mesh, 0)


def test_a_batch_that_does_not_divide_names_the_nearest() -> None:
    mesh: Any = HostMesh((8, 8, 1), [0] * 64)
    check_batch(128, mesh)
    check_batch(128, mesh, accumulate=2)
    with pytest.raises(UserError, match=r"batch size 96 does not .* the nearest are 64 and 128"):
        check_batch(96, mesh)
    with pytest.raises(UserError, match=r"192 in 2 parts .* multiple of 128; the nearest are 128 and 256"):
        check_batch(192, mesh, accumulate=2)
    with pytest.raises(UserError, match="the nearest are 64"):
        check_batch(8, mesh)
