"""Reading, checking and quarantining training data."""
