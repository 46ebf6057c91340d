"""The shape of the language model (`models/lm.py`), and its sizes."""

from dataclasses import dataclass

from melody_jax.control_tokens import ControlVocabulary
from melody_jax.errors import UserError
from melody_jax.models.functional import Remat


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Tokens that come between the prefix and the sequence: of one vocabulary, or codes of several levels in turn."""

    length: int
    """Number of tokens M, a multiple of `levels`."""
    ids: int
    """Ids of a token, or of each level."""
    levels: int = 1
    """Levels that the tokens cycle through: token m is of level m % levels."""

    def __post_init__(self) -> None:
        for name in ("length", "ids", "levels"):
            if getattr(self, name) < 1:
                raise UserError(f"condition: {name} is {getattr(self, name)}; it must be at least 1")
        if self.length % self.levels:
            raise UserError(
                f"condition: {self.length} tokens are no whole number of frames of {self.levels} levels"
            )


@dataclass(frozen=True, kw_only=True)
class LMConfig:
    """Shape of the language model. The defaults are `mini` without its control tokens: 2.2 M parameters in
    the blocks."""

    layers: int = 5
    """Transformer blocks."""
    width: int = 192
    """Channels D of the residual stream."""
    heads: int = 4
    """Attention heads; they divide `width` into even head widths."""
    ffn: int = 512
    """Hidden channels of the SwiGLU feed-forward layer."""
    prefix_levels: int = 12
    """Prefix tokens P: levels of the residual quantiser of the joint text and music embedding. 0: none, as in AudioLM;
    a sequence without a condition then begins with a learned embedding."""
    prefix_codes: int = 256
    """Codes per prefix level (1024 in `paper`)."""
    prefix_everywhere: bool = True
    """Also adds the prefix to the embedding of every semantic token (not in `paper`). A small network needs most of its
    training to learn to attend to the prefix; this sum gives the prefix an effect from the start."""
    controls: ControlVocabulary | None = None
    """Control tokens that follow the prefix tokens (control_tokens.py; not in `paper`); None: none."""
    melody_span: int = 0
    """Tokens that a melody token (melody_tokens.py) lasts: 1 for semantic tokens, for codes those in the time of a
    semantic token. 0: the network follows no melody. Requires `tokens_per_pass` 1."""
    recall: bool = True
    """Finds similar earlier passages and may copy their continuation (models/recall.py; not in `paper`)."""
    semantic_vocab: int = 1024
    """Semantic ids, or codes of each level."""
    code_levels: int = 1
    """Levels that the tokens cycle through: token u is a code of level u % code_levels. More than 1, as for the codes
    of a residual quantiser, requires `recall` False and `tokens_per_pass` 1."""
    condition: Condition | None = None
    """Tokens between the prefix and the sequence; None: none."""
    tokens_per_pass: int = 1
    """Tokens n per pass through the blocks (1 in `paper`); more than 1 requires `recall` False."""
    dropout: float = 0.0
    """Probability of zeroing a channel of an embedding or of a residual update, in training only."""
    rope_base: float = 10000.0
    """Base of the rotary frequencies; positions are token indices."""
    dtype: str = "float32"
    """Compute dtype of the matrix products; norms, softmax and logits are float32."""
    remat: Remat = "none"
    """What the backward pass recomputes: "none", "dots" or "blocks" (models/functional.py)."""

    def __post_init__(self) -> None:
        if self.tokens_per_pass < 1 or (self.tokens_per_pass > 1 and self.recall):
            raise UserError(
                f"tokens_per_pass is {self.tokens_per_pass}: it must be 1, or more with recall False"
            )
        if self.code_levels < 1 or (self.code_levels > 1 and (self.recall or self.tokens_per_pass > 1)):
            raise UserError(
                f"code_levels is {self.code_levels}: it must be 1, or more with recall False and tokens_per_pass 1"
            )
        if self.melody_span < 0 or (self.melody_span and self.tokens_per_pass > 1):
            raise UserError(
                f"melody_span is {self.melody_span}: it must be 0, or more with tokens_per_pass 1"
            )
        if not self.prefix_levels and self.controls:
            raise UserError("prefix_levels is 0: control tokens follow prefix tokens; it must be at least 1")

    @property
    def prefix_sizes(self) -> tuple[int, ...]:
        """Number of values of every prefix and control token."""
        controls = () if self.controls is None else self.controls.sizes
        return (self.prefix_codes,) * self.prefix_levels + controls

    @property
    def prompt_length(self) -> int:
        """Prefix and control tokens, P + C."""
        return len(self.prefix_sizes)

    @property
    def given_length(self) -> int:
        """Prefix tokens, control tokens and the condition, P + C + M."""
        return self.prompt_length + (self.condition.length if self.condition else 0)

    @property
    def prefix_length(self) -> int:
        """Positions before the sequence: those of the given tokens, or the one of the learned beginning."""
        return max(self.given_length, 1)


TINY = LMConfig(layers=2, width=64, heads=2, ffn=128, prefix_codes=8, semantic_vocab=64)
"""For tests."""
PAPER = LMConfig(
    layers=24,
    width=1024,
    heads=16,
    ffn=4096,
    prefix_codes=1024,
    prefix_everywhere=False,
    recall=False,
    dropout=0.1,
)
"""The paper's 429.5 M parameters (that figure includes a head over the prefix ids)."""
MODERN = LMConfig(
    layers=24,
    width=1024,
    heads=16,
    ffn=4096,
    prefix_codes=1024,
    recall=False,
    tokens_per_pass=2,
    dropout=0.1,
)
"""The paper's size with half the passes."""
