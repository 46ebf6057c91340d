"""Where music comes from, and how it becomes batches."""
