"""LoRA on question pairs, and merging."""
