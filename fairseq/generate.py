"""Translate a binarised test set with fairseq: every flag of ``fairseq-generate``.

A pruned checkpoint brings its masks along.

    python fairseq/generate.py DATA --path checkpoints/checkpoint_best.pt --beam 5 --remove-bpe sentencepiece \\
        --results-path OUT
"""

import launcher

launcher.prepare()

if __name__ == "__main__":
    launcher.run("generate", __doc__)
