"""The language model: one input type (batch), one file (qwen), one declaration of parameters."""
