"""Checks of a spec whose sections are valid: one part against another, and against the disk."""
