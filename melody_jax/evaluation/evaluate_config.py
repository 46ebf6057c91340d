"""What `melody evaluate` measures, against what, and where it writes (`evaluate.py`)."""

from dataclasses import dataclass

from melody_jax.errors import UserError
from melody_jax.options import check_fields, option
from melody_jax.systems import SYSTEMS


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is measured, and against what."""

    clips: str = option("", group="what to measure")
    """Folder of sound files or of audio shards; empty: clips are made from `model` and `prompts` into
    `out`/clips."""
    model: str = ""
    """Released model that makes the clips, with the default sampling settings; owner/name is one on the Hugging Face
    Hub."""
    prompts: str = ""
    """File of prompts, one JSON object per line with "id" and "prompt"; empty: those in the folder's
    manifest."""
    votes: str = ""
    """File of blind comparisons of two clips, such as votes.jsonl of a studio's project: win rates; on its own, without
    clips or a model, nothing else is measured."""
    folder: str = ""
    """Folder of releases; empty: the packaged ones."""
    system: str = option("melody", choices=tuple(SYSTEMS))
    """Kind of the model (docs/systems.md)."""
    reference: str = option("", group="what to compare with")
    """Real music that was not trained on: a folder like `clips`, or a .npz with the mean "mu" (E,) and the
    covariance "sigma" (E, E) of its embeddings; empty: no distances."""
    training: str = ""
    """The model's training music, a folder like `clips`, to detect memorised clips; empty: no such test."""
    judges: str = ""
    """Audio shards of composed music, train split, to train the judges of genre, instruments, tempo, key,
    mode and metre; empty: no adherence."""
    embedding: str = "mini"
    """Release whose MuLan music tower embeds the clips (hf://owner/name: one on the hub), or a Python file (see
    evaluation/embedding.py)."""
    seconds: float = option(10.24, group="how to measure", least=2, most=3600)
    """Length of the pieces that all clips are cut into; a shorter clip is one piece."""
    draws: int = option(200, least=20)
    """Bootstrap resamples per interval. One of the extrapolated distance takes 0.03 s with 300 pieces and 0.16 s with
    10,000, for embeddings of 128 numbers; for 512 numbers and 2,000 pieces it takes 1 s."""
    seed: int = option(0, least=0)
    """Seed of the made clips, the resamples and the judges."""
    listen: int = option(40, least=0)
    """Pieces on the page, evenly spaced."""
    out: str = option("evaluation", group="where to write")
    """Folder of the result; created if it does not exist."""
    cache: str = "runs/evaluation"
    """Folder of measurements, for later runs and for other processes."""
    process: int = 0
    """Index of this process, from 0."""
    processes: int = option(1, least=1)
    """Number of processes that share the work."""
    beam: tuple[str, ...] = ()
    """Options of Apache Beam without their dashes, such as runner=DataflowRunner project=NAME: its workers share the
    work, in as many parts as --processes. They must see all folders under the same paths."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.process < self.processes:
            raise UserError(
                f"process is {self.process}; with {self.processes} processes it must be 0 to {self.processes - 1}"
            )
        if self.beam and self.process:
            raise UserError(
                f"--process is {self.process}; with --beam every worker takes all parts that it is given"
            )


PLACES = (
    "folder", "out", "cache", "process", "processes", "beam", "clips", "reference", "training", "judges", "prompts",
    "votes",
)  # fmt: skip
"""Fields with folders of this machine; the result names sets by their hashes instead."""
