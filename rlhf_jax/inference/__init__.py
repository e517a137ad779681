"""Draw responses and score them, with one definition of the model."""
