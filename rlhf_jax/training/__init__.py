"""One train state, one optimizer, one mesh, one checkpoint format, one loop, for every training stage."""
