"""One training: schedule, loop, callbacks, checkpoints, optimizers, feature cache, run directory."""
