"""Provide Menagerie, a small invented world in plain English in which every reply can be judged exactly."""
