"""What would run and why, what it may cost, and what no run needs."""
