"""Translate lines from the standard input, or --input, with fairseq: every flag of ``fairseq-interactive``.

A pruned checkpoint brings its masks along.

    python fairseq/interactive.py DATA --path checkpoints/checkpoint_best.pt --beam 5 --remove-bpe sentencepiece < LINES
"""

import launcher

launcher.prepare()

if __name__ == "__main__":
    launcher.run("interactive", __doc__)
