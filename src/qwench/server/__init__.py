"""The HTTP face: OpenAI-compatible routes over one EngineClient. Knows no torch, no weights and no cache."""
