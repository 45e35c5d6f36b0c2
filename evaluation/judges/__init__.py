"""Judges: classifiers that say of a text how toxic, true or informative it is, and how well."""
