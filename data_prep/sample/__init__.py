"""Drawn people and plants, the sample data of quickstart, tutorial and tests."""
