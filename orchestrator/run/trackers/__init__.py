"""What the mirror of a run writes to: one module per tool."""
