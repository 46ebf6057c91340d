"""Whether a semantic, a coarse and a fine language model and a codec belong together."""

from typing import Any

from melody_jax.errors import UserError


def check_networks(configs: dict[str, Any]) -> None:
    """Raises `UserError` unless the networks fit each other."""
    codec = configs["vae"]
    coarse = configs["coarse"]
    fine = configs["fine"]
    if codec.quantiser is None:
        raise UserError(
            "vae has no quantiser; language models of codes need a codec with codes, such as configs/codec_paper.py"
        )
    for name in ("coarse", "fine"):
        if configs[name].condition is None:
            raise UserError(f"{name} has no condition, so it is not an acoustic model")
    levels = coarse.code_levels + fine.code_levels
    if levels > codec.quantiser.levels or coarse.semantic_vocab != codec.quantiser.codes:
        raise UserError(
            f"coarse and fine write {levels} levels of {coarse.semantic_vocab} codes, the codec has "
            f"{codec.quantiser.levels} of {codec.quantiser.codes}; take all files from one release"
        )
    sizes = {
        "semantic ids of coarse and lm": (coarse.condition.ids, configs["lm"].semantic_vocab),
        "codes of fine and the codec": (fine.semantic_vocab, codec.quantiser.codes),
        "codes that fine follows and those of the codec": (fine.condition.ids, codec.quantiser.codes),
    }
    require_equal(sizes)
    frames = codec.audio_format.token_samples // codec.hop
    if coarse.code_levels != fine.condition.levels:
        raise UserError(
            f"fine follows {fine.condition.levels} levels of codes, coarse writes {coarse.code_levels}; take both from "
            "one release"
        )
    if fine.condition.length % (frames * coarse.code_levels):
        raise UserError(
            f"fine follows {fine.condition.length} codes; it must be a multiple of {frames * coarse.code_levels}, "
            "those of a semantic token in this codec; take both from one release"
        )


def require_equal(sizes: dict[str, tuple[int, int]]) -> None:
    """Raises `UserError` for the first pair of sizes that differ, by its name."""
    for what, (one, other) in sizes.items():
        if one != other:
            raise UserError(f"{what} are {one} and {other}; take all files from one release")
