"""A finished ensemble away from its run: members, answers, bundle, comparison."""
