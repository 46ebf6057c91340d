"""One file a stage: which network, which loss, which batches."""
