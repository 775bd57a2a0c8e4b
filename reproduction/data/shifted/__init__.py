"""Other data for models that are trained already, in the form of their training."""
