"""What is shown beside a run's own page: several runs together, and a picture for a README."""
