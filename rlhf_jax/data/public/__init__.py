"""Read the public data sets that people train on, in their original formats."""
