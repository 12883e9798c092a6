"""Files, console lines, errors and other helpers that know nothing of models."""
