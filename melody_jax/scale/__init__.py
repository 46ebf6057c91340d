"""The cost of training and sampling on TPUs that are not attached: counted, and compiled ahead of time."""
