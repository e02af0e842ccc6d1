"""GGUF files without their tensors: header, metadata and a model's facts. Needs no torch."""
