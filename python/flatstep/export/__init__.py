"""Models for other programs: folders of Hugging Face with a tokenizer, and GGUF files."""
