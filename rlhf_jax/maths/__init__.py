"""Compute losses, returns and statistics as functions of arrays: no models, configs or state."""
