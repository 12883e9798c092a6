"""The training of one run: schedule, loop, callbacks, checkpoints, optimizers, feature cache."""
