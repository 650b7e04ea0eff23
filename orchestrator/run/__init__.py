"""One process drives one run: the driver, its listeners, the tracking process, the audit alone, the doctor."""
