"""The files of a run as typed records, one module per file."""
