"""Binarise parallel text for fairseq: every flag of ``fairseq-preprocess``.

    python fairseq/preprocess.py --source-lang de --target-lang en --joined-dictionary --destdir DATA \\
        --trainpref PAIRS/subwords/train --validpref PAIRS/subwords/valid --testpref PAIRS/subwords/test
"""

import launcher

launcher.prepare()

if __name__ == "__main__":
    launcher.run("preprocess", __doc__)
