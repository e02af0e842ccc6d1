"""What a model needs, from its published shape alone: no torch, no download."""
