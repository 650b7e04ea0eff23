"""What happens to training photos: policies, erasing, mixing, and who is drawn in an epoch."""
