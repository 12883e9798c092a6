"""The commands of `tfft`: one thin module each."""
