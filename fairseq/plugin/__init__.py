"""Attention Pruning for fairseq's transformers, loaded with ``--user-dir``.

Importing it registers the model ``ap_transformer`` and, for every architecture of fairseq's ``transformer``, a twin
that can be pruned: ``transformer_iwslt_de_en`` becomes ``ap_transformer_iwslt_de_en``.
"""

from . import architectures, model

__all__ = ["architectures", "model"]
