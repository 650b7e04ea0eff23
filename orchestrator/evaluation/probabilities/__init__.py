"""Probabilities beside answers: how far they can be believed, and answers moved by them."""
