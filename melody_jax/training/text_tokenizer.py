"""Whether captions are read as the released text tower of a stage reads them."""

from pathlib import Path

from melody_jax import files, release, release_folder
from melody_jax.errors import UserError


def check_tokenizer(networks: str, tokenizer: str) -> None:
    """Raises `UserError` if the file `tokenizer` ("": the packaged one) is not that of the mulan in `networks`.

    networks: the folder of the release; "" is not checked.
    """
    if not networks:
        return
    file = release_folder.network_folder(networks, "mulan") / release.TOKENIZER
    wanted = files.file_hash(file) if file.exists() else None
    if wanted != (files.file_hash(Path(tokenizer)) if tokenizer else None):
        name = str(file) if file.exists() else "the packaged one: leave it out"
        raise UserError(f"data.text_tokenizer is {tokenizer!r}; the mulan of {networks} has {name}")
