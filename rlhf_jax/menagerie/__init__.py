"""Menagerie: a small closed world in plain English with an exact judge."""
