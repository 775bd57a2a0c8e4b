"""From a pattern to a mask: the rules of the paper, and the controls that a mask is compared with."""
