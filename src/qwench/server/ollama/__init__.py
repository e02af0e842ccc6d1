"""Ollama's API, as a translation to and from a conversation."""
