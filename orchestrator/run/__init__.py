"""One process drives one run: driver, control files, tracking, audit alone, doctor."""
