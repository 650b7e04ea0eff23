"""Drawn people, the sample data of quickstart and tests."""
