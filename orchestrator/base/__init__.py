"""What every room may use: errors, the console, keys, versions."""
