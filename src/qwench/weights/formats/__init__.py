"""One file per way in which weights are stored; none of them knows a model."""
