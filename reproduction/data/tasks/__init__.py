"""GLUE and SQuAD, and stand-ins for them that install with pip."""
