"""Model weights of the preparation: the registry, downloads, the cache."""
