"""The result of `melody evaluate` as Markdown tables and as a plot."""

import io
from pathlib import Path
from typing import Any

from melody_jax.evaluation import votes
from melody_jax.evaluation.intervals import Interval
from melody_jax.files import write_bytes

SIGNAL_TITLES = {
    "loudness_lufs": "loudness, LUFS",
    "peak_dbfs": "peak, dBFS",
    "clipped": "share of clipped samples",
    "silent": "share of silent time",
    "longest_silence": "longest silence, s",
    "flatness": "spectral flatness",
    "steady_bass": "share of time with a steady bass pitch",
    "width_db": "stereo width (side over middle), dB",
    "correlation": "correlation of left and right",
    "balance_db": "left over right, dB",
    "mono_loss": "loudness in mono relative to stereo, LU",
}
PIECE_TITLES = SIGNAL_TITLES | {
    "frechet": "Fréchet distance of a piece",
    "cycle": "cosine with the prompt",
    "memorisation": "cosine with the nearest training piece",
}
COLUMNS = 4
"""Panels per row of the plot."""

Row = tuple[str, Any, str]


def markdown(result: dict[str, Any]) -> str:
    """All metrics in tables, with the names and hashes of the sets. Intervals are 95 %."""
    seconds = result["settings"]["seconds"]
    lines = [f"Embedding: {result['embedding']}. Pieces of {seconds:g} s; 95 % intervals.", ""]
    for role, clips in result["sets"].items():
        size = f", {clips['clips']} clips, {clips['pieces']} pieces" if "clips" in clips else ""
        lines.append(f"- {role}: {clips['name']}{size}, sha256 {clips['sha256'][:16]}")
        lines += [f"  - {name} is not measured: {why}" for name, why in clips.get("rejects", {}).items()]
    lines += ["", "| metric | value | 95 % interval | for comparison |", "| --- | --- | --- | --- |"]
    rows = _distance_rows(result) + _diversity_rows(result) + _memorisation_rows(result)
    rows += [
        (title, result["signal"][name], "")
        for name, title in SIGNAL_TITLES.items()
        if name in result["signal"]
    ]
    rows.append(
        ("share of clips that fall silent", result["signal"]["clips_fallen_silent"], "2 s below -50 dBFS")
    )
    lines += [f"| {name} | {_value(value)} | {_ends(value)} | {other} |" for name, value, other in rows]
    if "adherence" in result:
        lines += ["", *_adherence_table(result["adherence"])]
    if "votes" in result:
        lines += ["", *votes.tables(result["votes"])]
    return "\n".join(lines) + "\n"


def _distance_rows(result: dict[str, Any]) -> list[Row]:
    rows: list[Row] = []
    if "distance" in result:
        distance = result["distance"]
        rows.append(("Fréchet distance", distance["frechet"], f"{distance['clips']} pieces"))
        if "frechet_infinite" in distance:
            fit = f"explained variance of the fit {distance['frechet_infinite_fit']:.3f}"
            rows.append(("Fréchet distance, infinitely many pieces", distance["frechet_infinite"], fit))
        if "kernel" in distance:
            note = "unbiased, no Gaussian assumption; can be negative"
            rows.append(("kernel distance (KAD)", distance["kernel"], note))
    if "cycle" in result:
        cycle = result["cycle"]
        other = "no comparison, as all prompts are equal"
        if "others" in cycle:
            other = f"with other prompts {_value(cycle['others'])}"
        rows.append(("MuLan cycle consistency", cycle["own"], other))
    return rows


def _diversity_rows(result: dict[str, Any]) -> list[Row]:
    diversity = result["diversity"]
    rows: list[Row] = []
    if diversity["all"] is not None:
        other = f"reference {_value(diversity['reference'])}" if "reference" in diversity else ""
        rows.append(("diversity", diversity["all"], other))
    if "within_a_prompt" in diversity:
        rows.append(("diversity within a prompt", diversity["within_a_prompt"], ""))
    return rows


def _memorisation_rows(result: dict[str, Any]) -> list[Row]:
    if "memorisation" not in result:
        return []
    memorisation = result["memorisation"]
    has_held_out = "held_out" in memorisation
    other = f"held-out pieces {memorisation['held_out']['mean']:.4g}" if has_held_out else ""
    rows: list[Row] = [("cosine with the nearest training piece", memorisation["clips"]["mean"], other)]
    if "above" in memorisation:
        note = "0.01 without memorisation"
        rows.append(("share closer than 99 % of held-out pieces", memorisation["above"], note))
    return rows


def _adherence_table(adherence: dict[str, Any]) -> list[str]:
    lines = [
        "| fact in the prompt | clips | score | 95 % interval | judge's score on composed music | chance |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, fact in adherence.items():
        score = fact["right"]
        lines.append(
            f"| {name} | {fact['clips']} | {_value(score)} | {_ends(score)} | {fact['composed']:.3f} | "
            f"{fact['chance']:.3f} |"
        )
    return lines


def _value(value: Any) -> str:
    return f"{value.value if isinstance(value, Interval) else value:.4g}"


def _ends(value: Any) -> str:
    return f"{value.low:.4g} to {value.high:.4g}" if isinstance(value, Interval) else ""


def plot(file: Path, result: dict[str, Any]) -> None:
    """Draws histograms of the pieces' metrics and a bar chart of the adherence into a PNG."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = [name for name in result["pieces"][0] if name not in ("clip", "start")]
    panels = len(names) + ("adherence" in result)
    rows = -(-panels // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(12, 2.6 * rows), layout="constrained", squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        axis.hist(
            [piece[name] for piece in result["pieces"] if piece[name] is not None], bins=30, color="tab:blue"
        )
        axis.set_title(PIECE_TITLES[name], fontsize=9)
    if "adherence" in result:
        _plot_adherence(axes.flat[len(names)], result["adherence"])
    for axis in axes.flat[panels:]:
        axis.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    plt.close(figure)
    write_bytes(file, buffer.getvalue())


def _plot_adherence(axis: Any, adherence: dict[str, Any]) -> None:
    facts = list(adherence)
    scores = [adherence[name]["right"] for name in facts]
    errors = [[score.value - score.low for score in scores], [score.high - score.value for score in scores]]
    axis.bar(facts, [score.value for score in scores], yerr=errors, color="tab:blue", label="clips")
    axis.plot(facts, [adherence[name]["composed"] for name in facts], "k_", label="composed music")
    axis.plot(facts, [adherence[name]["chance"] for name in facts], "r_", label="chance")
    axis.tick_params(axis="x", labelrotation=45, labelsize=7)
    axis.set_title("score of facts in the prompt", fontsize=9)
    axis.legend(fontsize=6)
