"""From a name to tensors: locate a checkpoint, read it, fill what ``model.parameters`` declares."""
