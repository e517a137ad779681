"""Provide Menagerie, a small invented world in plain English with an exact judge of every reply."""
