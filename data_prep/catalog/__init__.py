"""From a folder to one row per photo: layouts, labels, groups, hashes."""
