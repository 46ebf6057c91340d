"""One loop for every stage: state, sharding, checkpoints, metrics, export."""
