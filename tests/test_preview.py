"""What a run sounds like, from the weights it has."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.stages import STAGES, Batches

from melody_jax import release
from melody_jax.config import DataConfig, TrainConfig, WatchConfig
from melody_jax.errors import UserError
from melody_jax.models import denoiser, vae
from melody_jax.sharding import make_mesh
from melody_jax.training.metric_log import MetricLog, Profile
from melody_jax.training.preview import make_preview
from melody_jax.training.state import TrainState

DPD = STAGES["dpd"].model


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("networks")
    for name, module, config in (("vae", vae, vae.TINY), ("dpd", denoiser, DPD)):
        release.save_network(
            folder, name, jax.jit(lambda k, m=module, c=config: m.init(c, k))(jax.random.key(0)), config, {}
        )
    return str(folder)


def listen(name: str, networks: str = "", **watch: Any) -> Any:
    config = TrainConfig(
        stage=STAGES[name],
        data=DataConfig(batch_size=4, networks=networks),
        watch=WatchConfig(preview_every=1, **watch),
    )
    preview = make_preview(config, [next(Batches(STAGES[name]))], make_mesh((-1, 1, 1)))
    assert preview is not None
    params = jax.jit(STAGES[name].init)(jax.random.key(0))
    none = jax.numpy.zeros(())
    return preview(TrainState(none, params, (), params["model"], none))


@pytest.mark.parametrize(
    ("name", "sounds"),
    [("vae", ("original", "reconstruction")), ("dpd", ("original", "diffused")), ("lm", ("generated",))],
)
def test_sound_and_image_of_every_item(name: str, sounds: tuple[str, ...], networks: str) -> None:
    previews = listen(name, networks, preview_items=3)
    assert sorted(previews) == sorted(f"preview/{sound}/{i}" for sound in sounds for i in range(3))
    for wave, rate, image in previews.values():
        assert rate == 24_000
        assert wave.ndim == 1
        assert np.isfinite(wave).all()
        assert np.abs(wave).max() <= 1
        assert image.shape == (80, len(wave) // 240)
        assert image.min() >= 0
        assert image.max() == 1


def test_what_cannot_be_heard_is_one_line(networks: str) -> None:
    for name, match in (("mulan", "mulan has no previews"), ("dpd", "need a released vae")):
        with pytest.raises(UserError, match=match):
            listen(name)


def test_players_and_pictures_go_to_tensorboard(tmp_path: Path) -> None:
    log = MetricLog(tmp_path, 0, 2, "vae", lambda _: 0.1, quiet=True)
    log.show(1, {"preview/original/0": (np.zeros(2400, np.float32), 24_000, np.eye(80, 10))})
    log.close()
    events = b"".join(file.read_bytes() for file in (tmp_path / "tensorboard").iterdir())
    for part in (b"preview/original/0", b"audio/wav", b"PNG"):
        assert part in events


def test_profile_of_the_steps_asked_for(tmp_path: Path) -> None:
    profile = Profile(tmp_path, 1, 2)
    for step in range(4):
        with profile.step(step):
            jax.numpy.zeros(3).block_until_ready()
        assert profile.running == (step in (1, 2))
    profile.close()
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1
