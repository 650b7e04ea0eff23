"""The parts of the `train` section of a spec, one module each. Imports no torch."""
