"""Hyperparameter search: KerasTuner's oracles and spaces, tfft's own trials."""
