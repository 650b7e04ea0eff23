"""Propose settings, train them, stop early: the study, the trial controller, Ray Tune, workers."""
