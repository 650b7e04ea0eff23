"""What a setting of the search is judged by, where that is more than one report."""
