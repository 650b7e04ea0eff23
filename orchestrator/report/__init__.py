"""The report of a run: words and pictures made from its files alone."""
