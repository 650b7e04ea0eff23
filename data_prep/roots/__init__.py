"""Where data lie: a folder of this machine, or a bucket; listing, opening, reading ahead."""
