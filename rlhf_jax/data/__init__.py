"""Records, tokenizers, the chat template, sources of records, and index-based batches."""
