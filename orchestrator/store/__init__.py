"""Bytes at rest: artifacts, tables, the ledger, the files of a run."""
