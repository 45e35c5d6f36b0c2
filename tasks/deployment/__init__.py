"""What a Prefect server is to hold, and how it is made to."""
