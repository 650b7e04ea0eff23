"""Pure functions of predictions: scores, intervals, tests, selection, the vote."""
