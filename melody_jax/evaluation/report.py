"""The result of `melody evaluate` as a table and as a plot."""

import io
from pathlib import Path
from typing import Any

from melody_jax.data.records import write_bytes
from melody_jax.evaluation.intervals import Interval

UNITS = {"loudness_lufs": "loudness, LUFS", "peak_dbfs": "peak, dBFS", "clipped": "share of samples clipped",
         "silent": "share of time silent", "flatness": "spectral flatness"}  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    """The figures in tables, the sets by name and hash. Intervals are 95 %."""
    lines = [
        f"Embedding: {result['embedding']}. Pieces of {result['settings']['seconds']:g} s; 95 % intervals.",
        "",
    ]
    for role, one in result["sets"].items():
        size = f", {one['clips']} clips, {one['pieces']} pieces" if "clips" in one else ""
        lines.append(f"- {role}: {one['name']}{size}, sha256 {one['sha256'][:16]}")
    lines += ["", "| figure | value | 95 % interval | beside it |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {name} | {_number(value)} | {_ends(value)} | {beside} |" for name, value, beside in _rows(result)
    ]
    if "adherence" in result:
        lines += ["", "| asked for | clips | heard | 95 % interval | judge on composed music | chance |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        for name, one in result["adherence"].items():
            right = one["right"]
            lines.append(f"| {name} | {one['clips']} | {_number(right)} | {_ends(right)} | {one['composed']:.3f} | "
                         f"{one['chance']:.3f} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def _rows(result: dict[str, Any]) -> list[tuple[str, Any, str]]:
    rows: list[tuple[str, Any, str]] = []
    if (distance := result.get("distance")) is not None:
        rows.append(("Fréchet distance", distance["frechet"], f"{distance['clips']} pieces"))
        if "frechet_infinite" in distance:
            fit = f"fit of the line {distance['frechet_infinite_fit']:.3f}"
            rows.append(("Fréchet distance, infinitely many pieces", distance["frechet_infinite"], fit))
        if "kernel" in distance:
            rows.append(
                (
                    "kernel distance (KAD)",
                    distance["kernel"],
                    "below 0: as near as the reference's own halves",
                )
            )
    if (cycle := result.get("cycle")) is not None:
        rows.append(
            ("MuLan cycle consistency", cycle["own"], f"with other clips' prompts {_number(cycle['others'])}")
        )
    diversity = result["diversity"]
    if diversity["all"] is not None:
        beside = f"reference {_number(diversity['reference'])}" if "reference" in diversity else ""
        rows.append(("diversity", diversity["all"], beside))
    if "within_a_prompt" in diversity:
        rows.append(("diversity within a prompt", diversity["within_a_prompt"], ""))
    if (memory := result.get("memorisation")) is not None:
        beside = f"held-out pieces {memory['held_out']['mean']:.4g}" if "held_out" in memory else ""
        rows.append(("nearest training piece, cosine", memory["clips"]["mean"], beside))
        if "above" in memory:
            rows.append(("nearer than 99 % of held-out pieces", memory["above"], "0.01 without memory"))
    rows += [(UNITS[name], value, "") for name, value in result["signal"].items() if name in UNITS]
    return rows


def _number(value: Any) -> str:
    return f"{value[0] if isinstance(value, tuple) else value:.4g}"


def _ends(value: Any) -> str:
    return f"{value.low:.4g} to {value.high:.4g}" if isinstance(value, Interval) else ""


def plot(file: Path, result: dict[str, Any]) -> None:
    """Draws how the pieces' figures are spread, and the adherence beside its ceiling, into a .png."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = [name for name in result["pieces"][0] if name not in ("clip", "start")]
    titles = UNITS | {"frechet": "Fréchet distance of a piece", "cycle": "cosine with the prompt",
                      "memorisation": "cosine with nearest training piece"}  # fmt: skip
    count = len(names) + ("adherence" in result)
    figure, axes = plt.subplots(
        -(-count // 4), 4, figsize=(12, 2.6 * -(-count // 4)), layout="constrained", squeeze=False
    )
    for axis, name in zip(axes.flat, names, strict=False):
        axis.hist([piece[name] for piece in result["pieces"]], bins=30, color="tab:blue")
        axis.set_title(titles[name], fontsize=9)
    if "adherence" in result:
        axis, asked = axes.flat[len(names)], list(result["adherence"])
        scores = [result["adherence"][name] for name in asked]
        values = [score["right"][0] for score in scores]
        errors = [[score["right"][0] - score["right"][1] for score in scores],
                  [score["right"][2] - score["right"][0] for score in scores]]  # fmt: skip
        axis.bar(asked, values, yerr=errors, color="tab:blue", label="clips")
        axis.plot(asked, [score["composed"] for score in scores], "k_", label="composed music")
        axis.plot(asked, [score["chance"] for score in scores], "r_", label="chance")
        axis.tick_params(axis="x", labelrotation=45, labelsize=7)
        axis.set_title("heard as asked for", fontsize=9)
        axis.legend(fontsize=6)
    for axis in axes.flat[count:]:
        axis.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    plt.close(figure)
    write_bytes(file, buffer.getvalue())
