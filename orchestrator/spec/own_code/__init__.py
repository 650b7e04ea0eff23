"""Code of the user that a spec names."""
