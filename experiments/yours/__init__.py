"""Experiments on data of your own: four facts, eight configs, and what the formats are."""
