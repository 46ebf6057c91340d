"""Quality against speed: adherence and Fréchet distance by steps, paper schedule and uniform, distilled and not.

    python benchmarks/few_steps.py

All rows share the prompts (test split), the semantic tokens and the first noise: only the diffusion differs. The judge
is that of `melody diagnose`; the Fréchet distance is between MuLan's music embeddings of the clips and of the test
pieces that the prompts describe. Finished rows are cached: run it again to go on. All 160 prompts take
about an hour of CPU time, the judge's pieces a quarter of one.
"""

import dataclasses
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

HERE = Path(__file__).parents[1] / "docs" / "evaluation"
BATCH = 16


@dataclass(frozen=True)
class Arguments:
    """Measures a released model and its distilled diffusion by steps."""

    model: str = "mini"
    """Name of the release."""
    folder: Path | None = None
    """Where releases are; the package's own if left out."""
    out: Path = HERE
    """Folder of prompts.jsonl, of the table and of the plot."""
    cache: Path = Path("runs/few_steps")
    """Folder of what finished rows gave, and of the judge's training features."""
    steps: tuple[int, ...] = (1, 2, 4, 5, 10, 20)
    """Numbers of steps."""
    prompts: int = 10
    """Prompts of each group, the first ones of the ten in prompts.jsonl."""
    judge_pieces: int = 160
    """Composed clips of each group the judge learns from."""
    guidance_scale: float = 2.5
    """Of the diffusion."""
    distilled_solver: str = "pingpong"
    """Solver of the distilled diffusion; the other one has ddim."""
    seed: int = 0
    """Of the generated clips."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of sampling."""

    network: str
    schedule: str
    solver: str
    steps: int

    @property
    def name(self) -> str:
        """Of its file in the cache."""
        return "-".join(str(value) for value in dataclasses.astuple(self))

    @property
    def passes(self) -> int:
        """Passes of the network for a window."""
        return self.steps * (1 if self.network == "distilled" else 2)


class Bench:
    """What all rows share: prompts, tokens, noise, and the networks."""

    def __init__(self, arguments: Arguments) -> None:
        from melody_jax.evaluation import adherence
        from melody_jax.sampling import generate
        from melody_jax.sampling.melody import load

        self.arguments = arguments
        every = adherence.read_prompts(arguments.out / "prompts.jsonl")
        ranks = [sum(other.group == prompt.group for other in every[:i]) for i, prompt in enumerate(every)]
        self.chosen = [i for i, rank in enumerate(ranks) if rank < arguments.prompts]
        self.prompts = [every[i] for i in self.chosen]
        self.melody = load(arguments.model, folder=arguments.folder)
        distilled = load(arguments.model, folder=arguments.folder, networks=("dpd",), distilled=True)
        self.networks = {"diffusion": self.melody, "distilled": distilled}
        self.write = jax.jit(generate.prefix_to_tokens, static_argnums=1)
        self.diffuse = jax.jit(generate.tokens_to_latents, static_argnums=1)

    def batches(self) -> list[tuple[Any, Any, jax.Array, jax.Array]]:
        """(sampler config, controls, keys, tokens) of each batch of prompts."""
        from melody_jax.sampling import generate
        from melody_jax.sampling.request import make_requests

        found = []
        for start in tqdm(range(0, len(self.prompts), BATCH), desc="tokens"):
            texts = [prompt.text for prompt in self.prompts[start : start + BATCH]]
            seeds = [self.arguments.seed + i for i in self.chosen[start : start + BATCH]]
            settings = {"seed": seeds, "guidance_scale": self.arguments.guidance_scale}
            (group,) = self.melody.groups(make_requests(texts, settings))
            controls = self.melody.controls_at(group)([0.0] * len(texts))
            keys = generate.item_keys(controls)
            found.append(
                (group.config, controls, keys, self.write(self.melody.params["lm"], group.config, controls, keys))
            )
        return found

    def sample(self, row: Row, batch: tuple[Any, Any, jax.Array, jax.Array]) -> np.ndarray:
        """Waves (B, T) of the batch's tokens."""
        from melody_jax.sampling import generate

        config, controls, keys, tokens = batch
        network = self.networks[row.network]
        how = {"steps": row.steps, "schedule": row.schedule, "solver": row.solver}
        config = dataclasses.replace(config, dpd=network.configs["dpd"], guided=row.network == "diffusion", **how)
        latents = self.diffuse(network.params["dpd"], config, controls, tokens, keys)
        return np.asarray(generate.latents_to_wave(self.melody.params["vae"], self.melody.configs["vae"], latents))

    def truth(self) -> np.ndarray:
        """The pieces (N, T) that the prompts describe."""
        from melody_jax.evaluation import adherence

        pieces = zip(self.prompts, self.chosen, strict=True)
        found = [adherence.ground_truth(p, i, self.melody.window_samples) for p, i in tqdm(list(pieces), desc="truth")]
        return np.stack(found)

    def measure(self, waves: np.ndarray) -> dict[str, np.ndarray]:
        """Of waves (N, T): the judge's features, verdicts on the tempo (False without a rhythm), embeddings."""
        from melody_jax import audio
        from melody_jax.evaluation import judge
        from melody_jax.models import mulan

        params, config = self.melody.params["mulan"], self.melody.configs["mulan"]
        embed = partial(jax.jit(mulan.embed_music, static_argnums=1), params, config)
        waves = np.stack([audio.peak_limit(wave) for wave in waves])
        found = zip(waves, self.prompts, strict=True)
        return {
            "features": np.stack([judge.log_mel_statistics(wave) for wave in waves]),
            "tempo": np.array([p.rhythmic and judge.tempo_matches(wave, p.tempo_bpm) for wave, p in found]),
            "embeddings": np.concatenate(
                [embed(jnp.asarray(waves[i : i + BATCH])) for i in range(0, len(waves), BATCH)]
            ),
        }


def measured(arguments: Arguments) -> tuple[Bench, dict[Row | None, dict[str, np.ndarray]]]:
    """What each row gave, and under None what the composed pieces did; rows that are cached are not sampled again."""
    rows = [
        Row(network=network, schedule=schedule, solver=solver, steps=steps)
        for network, solver in (("diffusion", "ddim"), ("distilled", arguments.distilled_solver))
        for steps in arguments.steps
        for schedule in ("paper", "uniform")[: 1 if steps == 1 else 2]  # one step is the same step under both
    ]
    bench, found = Bench(arguments), {}
    batches = None
    for row in tqdm([None, *rows], desc="rows"):
        file = arguments.cache / f"{row.name if row else 'truth'}-{arguments.prompts}-{arguments.seed}.npz"
        if not file.exists():
            batches = batches or bench.batches()
            waves = np.concatenate([bench.sample(row, batch) for batch in batches]) if row else bench.truth()
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, **bench.measure(waves))
        found[row] = dict(np.load(file, allow_pickle=False))
    return bench, found


def table(arguments: Arguments) -> list[dict[str, Any]]:
    """One dict a row: how it was sampled, and what was measured."""
    from melody_jax.evaluation import adherence, judge
    from melody_jax.evaluation.frechet import frechet_distance

    bench, found = measured(arguments)
    names = [group.name for group in adherence.GROUPS]
    asked = np.asarray([names.index(prompt.group) for prompt in bench.prompts])
    rhythmic = np.asarray([prompt.rhythmic for prompt in bench.prompts])
    classifier = judge.train(*adherence.judge_data(arguments.cache, arguments.judge_pieces))
    right = {row: classifier.predict(values["features"]) == asked for row, values in found.items()}
    best = max(
        (row for row in found if row and row.network == "diffusion"),
        key=lambda row: (row.steps, row.schedule == "paper"),
    )
    draws = np.random.default_rng(0).integers(0, len(asked), (2_000, len(asked)))
    rows = []
    for row, values in found.items():
        kept = right[row][draws].mean(axis=1) / right[best][draws].mean(axis=1)
        rows.append(
            (dataclasses.asdict(row) | {"passes": row.passes} if row else {"network": "composed pieces"})
            | {
                "group": float(right[row].mean()),
                "kept": float(right[row].mean() / right[best].mean()),
                "kept_95": [float(x) for x in np.percentile(kept, [2.5, 97.5])],
                "tempo": float(values["tempo"][rhythmic].mean()),
                "frechet": frechet_distance(values["embeddings"], found[None]["embeddings"]),
            }
        )
    return rows


def report(arguments: Arguments, rows: list[dict[str, Any]]) -> None:
    """Prints the table and writes it as Markdown and JSON."""
    lines = ["| network | schedule | steps | passes | group right | of the full diffusion's | tempo right | Fréchet |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        how = [row["network"], *(str(row.get(name, "")) for name in ("schedule", "steps", "passes"))]
        low, high = row["kept_95"]
        kept = f"{row['kept']:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| {' | '.join(how)} | {row['group']:.3f} | {kept} | {row['tempo']:.3f} | {row['frechet']:.4f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    (arguments.out / f"few-steps-{arguments.model}.md").write_text(text)
    places = ("folder", "out", "cache")  # of this machine, not of the measurement
    settings = {name: value for name, value in dataclasses.asdict(arguments).items() if name not in places}
    record = {"settings": settings, "rows": rows}
    (arguments.out / f"few-steps-{arguments.model}.json").write_text(json.dumps(record, indent=2) + "\n")


def plot(arguments: Arguments, rows: list[dict[str, Any]]) -> None:
    """Draws both measures over the passes of the network."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    truth, *sampled = rows
    for network, colour in (("diffusion", "tab:blue"), ("distilled", "tab:orange")):
        for schedule, line in (("paper", "-"), ("uniform", "--")):
            mine = [row for row in sampled if row["network"] == network and row["schedule"] == schedule]
            for axis, measure in zip(axes, ("group", "frechet"), strict=True):
                points = [row["passes"] for row in mine], [row[measure] for row in mine]
                axis.plot(*points, line, marker="o", color=colour, label=f"{network}, {schedule}")
    axes[0].axhline(truth["group"], color="grey", linewidth=0.8)
    for axis, title in zip(
        axes, ("group right (line: composed pieces)", "Fréchet distance, MuLan embeddings"), strict=True
    ):
        axis.set(xscale="log", xlabel="passes of the network a window", title=title, xticks=(1, 2, 4, 10, 20, 40))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.minorticks_off()
    axes[1].legend(fontsize=8)
    figure.savefig(arguments.out / f"few-steps-{arguments.model}.png", dpi=90)


def main() -> None:
    """Measures, and writes table and plot."""
    arguments = tyro.cli(Arguments, description=__doc__)
    rows = table(arguments)
    report(arguments, rows)
    plot(arguments, rows)


if __name__ == "__main__":
    main()
