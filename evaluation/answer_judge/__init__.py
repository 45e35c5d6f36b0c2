"""A language model that says which of two answers is better, asked in both orders."""
