"""Image-classification experiments: spec -> plan -> run -> ensemble with its interval."""

__version__ = "0.1.0"
