"""A store on a bucket: requests, leases, artifacts behind a local cache, mirrors of runs."""
