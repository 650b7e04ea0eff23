"""What makes scores lie: leaks, copies, corrupt files, shortcuts."""
