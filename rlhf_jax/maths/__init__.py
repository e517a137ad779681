"""Functions of arrays and nothing else: no models, no configs, no state."""
