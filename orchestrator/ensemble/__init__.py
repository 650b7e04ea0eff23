"""A finished ensemble away from its run: its members, answers for new photos, the bundle, comparison."""
