"""What the commands print: plans, states, reasons, stories and results."""
