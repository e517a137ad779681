"""One readable file per stage, and what the stages share around their algorithms."""
