"""The settings of `melody prepare`: how recordings are cut, how features are computed, and how the work is divided."""

from dataclasses import dataclass

from melody_jax.audio_format import HIGHEST_RATE, LOWEST_RATE, SAMPLE_RATE, AudioFormat, check_fits_flac
from melody_jax.errors import UserError
from melody_jax.options import check_fields, option

FEATURE_NETWORKS = ("mulan", "tokenizer", "vae")
"""The released networks that features are computed with."""


@dataclass(frozen=True, kw_only=True)
class PieceConfig:
    """How recordings become pieces, and which are rejected."""

    sample_rate: int = option(
        SAMPLE_RATE, group="how recordings are cut", least=LOWEST_RATE, most=HIGHEST_RATE
    )
    """Sample rate of the pieces, Hz. The default becomes that of the autoencoder, with --networks."""
    channels: int = option(1, least=1, most=2)
    """Channels of the pieces: 1 mixes to mono, 2 keeps stereo (a mono recording fills both channels)."""
    piece_seconds: float = 30.0
    """Length of the pieces that a recording is cut into, seconds; a remainder under half of it joins the last piece."""
    min_seconds: float = 5.0
    """Recordings shorter than this are rejected, seconds."""
    loudness_lufs: float = -16.0
    """Integrated loudness of every piece (ITU-R BS.1770), LUFS; peaks are limited to 0.98."""
    max_gain_db: float = 40.0
    """Largest gain that is applied to reach the loudness, dB."""
    silence_lufs: float = -60.0
    """Pieces quieter than this are rejected, LUFS as recorded."""
    max_clipped: float = 0.01
    """Pieces with a larger fraction of clipped samples (flat tops at full scale) are rejected, 0 to 1."""
    duplicate_share: float = 0.1
    """Fraction of matching landmarks from which a recording counts as a duplicate; above 1: no comparison."""
    fingerprint_seconds: float = 120.0
    """Length of the beginning of each recording that is compared, seconds."""

    @property
    def audio_format(self) -> AudioFormat:
        """Sample rate and channels of the pieces."""
        return AudioFormat(sample_rate=self.sample_rate, channels=self.channels)

    def __post_init__(self) -> None:
        check_fields(self)
        check_fits_flac(self.sample_rate)
        for name in ("piece_seconds", "min_seconds", "duplicate_share", "fingerprint_seconds"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be above 0")


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """How the networks are applied to pieces."""

    window_tokens: int = option(256, group="how features are computed")
    """Window of the networks, semantic tokens (256 = 10.24 s); shorter pieces are rejected."""
    hop_tokens: int = 64
    """Hop between windows that have prefix tokens, semantic tokens (64 = 2.56 s)."""
    variants: int = 4
    """Sets of prefix tokens per window: the first is clean, the others are jittered before quantisation."""
    jitter: float = 0.3
    """Norm of the jitter relative to the distance between the embedding and the mean embedding."""
    seed: int = 0
    """Seed of the jitter."""

    def __post_init__(self) -> None:
        for name in ("window_tokens", "hop_tokens", "variants"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(FeatureConfig, PieceConfig):
    """Turns recordings into audio shards, and audio shards into features for the LM and the diffusion model."""

    source: str = option("", group="what to read")
    """Folder of recordings, of audio shards, or of a TFDS dataset."""
    layout: str = "files"
    """Layout of `source`: files, audiofolder, musiccaps, mtg-jamendo, fma or song-describer."""
    captions: str = ""
    """Caption table of the layout; for files: CSV or JSONL with file and caption. Empty: none."""
    captions_may_leave: bool = False
    """Accepts tables that name files outside of `source`."""
    networks: str = ""
    """Folder of the released mulan, tokenizer and vae, the name of a packaged release ("mini"), or hf://owner/name
    on the Hugging Face Hub, to make feature shards. Empty: only audio shards are made."""
    out: str = option("", group="where to write")
    """Folder for the shards. An interrupted run resumes when the same command runs again."""
    shard_recordings: int = 64
    """Maximum number of recordings per audio shard."""
    shard_megabytes: int = 1024
    """Maximum size of the recordings of one audio shard, megabytes; a larger file gets a shard of its own."""
    batch_size: int = option(8, group="how to run")
    """Windows per network call."""
    beam: tuple[str, ...] = ()
    """Apache Beam options without their dashes, such as runner=FlinkRunner flink_master=host:8081. Empty: run on this
    machine, with one process per core for recordings and one process for the networks."""

    def __post_init__(self) -> None:
        FeatureConfig.__post_init__(self)
        PieceConfig.__post_init__(self)
        for name in ("shard_recordings", "shard_megabytes", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def pieces(self) -> PieceConfig:
        """The settings of cutting."""
        return PieceConfig(**{name: getattr(self, name) for name in PieceConfig.__dataclass_fields__})

    @property
    def features(self) -> FeatureConfig:
        """The settings of feature extraction."""
        return FeatureConfig(**{name: getattr(self, name) for name in FeatureConfig.__dataclass_fields__})
