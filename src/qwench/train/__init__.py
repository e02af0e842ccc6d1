"""Training of the embedded model: data, recipe, command, evaluation."""
