"""What the experiments share: corpora, training, results and figures. The method is in ``attention_pruning``."""
