"""From photos to shards of crops: background removal, face crops, the actor pool."""
