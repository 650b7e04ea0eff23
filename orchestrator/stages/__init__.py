"""The stages of a run, one file each, with what only they need."""
