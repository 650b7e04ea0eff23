"""What the user wrote: reading, models, messages with line and column."""
