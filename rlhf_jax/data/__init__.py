"""Read records from wherever they are kept, and turn them into batches of token ids."""
