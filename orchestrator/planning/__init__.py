"""What would run and why, what it may cost, and what nobody needs any more."""
