"""OpenAI's Responses API, as a translation to and from a conversation."""
