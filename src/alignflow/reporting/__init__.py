"""The release report: one HTML page a person wants to read."""
