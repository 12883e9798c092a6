"""The verbs of the command line: one thin binary each."""
