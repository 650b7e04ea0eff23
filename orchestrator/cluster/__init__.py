"""The door to Ray for everything but Tune."""
