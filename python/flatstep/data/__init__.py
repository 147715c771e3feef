"""From text to batches: files, vocabularies, the split for validation, the order of windows."""
