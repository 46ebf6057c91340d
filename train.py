"""Trains one stage: `python train.py configs/vae_tiny.py --data.folder corpus/train --steps 50`.

Run it again with the same arguments to resume. `--help` after the config lists every field.
"""

import sys

from melody_jax.errors import UserError, exits_cleanly
from melody_jax.runtime import enable_compile_cache, join_hosts, tune_allocator


@exits_cleanly
def main() -> None:
    """Parses, opens the data, trains."""
    enable_compile_cache()
    import jax

    from melody_jax.config import load_config
    from melody_jax.data import pipeline
    from melody_jax.text import read_tokenizer
    from melody_jax.training.loop import train

    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return
    if len(sys.argv) < 2:
        raise UserError("say which config: python train.py configs/<stage>_<size>.py [--field value ...]")
    config = load_config(sys.argv[1], sys.argv[2:])
    join_hosts(config.hosts)
    if config.stage.name == "mulan":
        read_tokenizer(config.data.text_tokenizer, config.stage.model.text.vocab_size)
    hashes = pipeline.check_provenance(config.data, config.stage.batch)
    here = (jax.process_index(), jax.process_count())
    batches = pipeline.TrainingBatches(config.data, config.stage.batch, *here)
    held_out = pipeline.validation_batches(config.data, config.stage.batch, config.eval_batches, *here)
    state = train(config, batches, held_out, hashes)
    if here[0] == 0:
        print(f"{config.stage.name}: step {int(state.step)} of {config.steps}, {config.workdir}")


if __name__ == "__main__":
    tune_allocator()
    main()
