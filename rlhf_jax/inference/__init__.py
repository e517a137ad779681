"""Sample responses and score given tokens with one definition of a model."""
