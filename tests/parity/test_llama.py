"""The semantic LM compared with Hugging Face's LLaMA: teacher-forced logits, and greedy cached decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melody_jax.models import decoding, functional, lm
from melody_jax.models.layers import rotary
from melody_jax.models.lm_config import LMConfig

torch = pytest.importorskip("torch", reason="parity needs: pip install melody_jax[parity]")
transformers = pytest.importorskip("transformers", reason="parity needs: pip install melody_jax[parity]")
roformer = pytest.importorskip(
    "transformers.models.roformer.modeling_roformer", reason="parity needs: pip install melody_jax[parity]"
)

CONFIG = LMConfig(
    layers=3,
    width=64,
    heads=4,
    ffn=96,
    prefix_levels=4,
    prefix_codes=8,
    semantic_vocab=50,
    prefix_everywhere=False,
    recall=False,
)


def pair() -> tuple[functional.Params, transformers.LlamaForCausalLM]:
    """Random parameters, and a LLaMA with the same values."""
    params = lm.init(CONFIG, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = jax.tree.unflatten(
        tree, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50,
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=96,
            rms_norm_eps=1e-6,
            rope_theta=10000.0,
            tie_word_embeddings=False,
            eos_token_id=None,
            bos_token_id=None,
            pad_token_id=0,
        )
    ).eval()
    state = {
        "model.embed_tokens.weight": params["semantic"],
        "model.norm.weight": params["norm"]["scale"],
        "lm_head.weight": params["head"].T,
    }
    for i, block in enumerate(functional.unstack(params["blocks"], CONFIG.layers)):
        layer = f"model.layers.{i}"
        for name, kernel in zip("qkv", jnp.split(block["qkv"]["kernel"], 3, axis=1), strict=True):
            state[f"{layer}.self_attn.{name}_proj.weight"] = kernel.T
        for name, kernel in zip(
            ("gate", "up"), jnp.split(block["gate_up"]["kernel"], 2, axis=1), strict=True
        ):
            state[f"{layer}.mlp.{name}_proj.weight"] = kernel.T
        state[f"{layer}.self_attn.o_proj.weight"] = block["out"]["kernel"].T
        state[f"{layer}.mlp.down_proj.weight"] = block["down"]["kernel"].T
        state[f"{layer}.input_layernorm.weight"] = block["norm"]["scale"]
        state[f"{layer}.post_attention_layernorm.weight"] = block["ffn_norm"]["scale"]
    theirs.load_state_dict({name: torch.tensor(np.array(value)) for name, value in state.items()})
    return params, theirs


def tokens() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 8, (2, 4)), rng.integers(0, 50, (2, 20))


def test_logits(compare) -> None:
    params, theirs = pair()
    prefix_tokens, semantic_tokens = tokens()
    prefix = lm.embed_prefix(params, CONFIG, jnp.asarray(prefix_tokens))
    embedded = np.concatenate([prefix, params["semantic"][semantic_tokens[:, :-1]]], axis=1)
    logits = theirs(inputs_embeds=torch.tensor(embedded)).logits[:, CONFIG.prefix_levels - 1 :]
    compare(lm.logits(params, CONFIG, jnp.asarray(prefix_tokens), jnp.asarray(semantic_tokens)), logits)


def test_cached_decoding() -> None:
    params, theirs = pair()
    prefix_tokens, _ = tokens()
    prefix = lm.embed_prefix(params, CONFIG, jnp.asarray(prefix_tokens))
    greedy = theirs.generate(
        inputs_embeds=torch.tensor(np.array(prefix)), max_new_tokens=30, min_new_tokens=30, do_sample=False
    )
    keys = jax.random.split(jax.random.key(0), 2)
    ours = decoding.generate(params, CONFIG, jnp.asarray(prefix_tokens), keys, 30, temperature=0.0).tokens
    assert len(np.unique(ours)) > 5
    np.testing.assert_array_equal(ours, greedy)


def test_rotary_positions(compare) -> None:
    """RoFormer rotates neighbouring channels, this package rotates halves: equal up to the order of the channels."""
    heads, length, depth = 2, 11, 8
    x = np.random.default_rng(0).normal(size=(1, heads, length, depth)).astype(np.float32)
    table = roformer.RoFormerSinusoidalPositionalEmbedding(length, depth)
    table.weight.data = table.create_weight()
    sinusoidal = table(torch.Size([1, length]))[None, None]
    turned, _ = roformer.RoFormerSelfAttention.apply_rotary_position_embeddings(
        sinusoidal, torch.tensor(x), torch.tensor(x)
    )
    halves = np.concatenate([np.arange(0, depth, 2), np.arange(1, depth, 2)])
    compare(rotary(jnp.asarray(x[..., halves]), jnp.arange(length)), turned.detach().numpy()[..., halves])
