"""Text on the way in and out: tokenizer, chat template, detokeniser, answer stream, sampling presets. No torch."""
