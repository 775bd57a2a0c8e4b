"""Train a translation model with fairseq, dense or pruned: every flag of ``fairseq-train``, and ours.

    python fairseq/train.py DATA --arch ap_transformer_iwslt_de_en ...                                     (dense)
    python fairseq/train.py DATA --arch ap_transformer_iwslt_de_en ... --PRUNE_BOOL --TAU 0.5 \\
        --PRUNE_ENC_SELF_ATTN --ENCODER_SELF_ATTN_PATH avg_attn_probabilities/NAME/self-enc.safetensors    (pruned)

Every architecture NAME of fairseq's transformer has a twin ap_NAME that knows the flags below; without them it is NAME.
Masks travel in the checkpoint, and are written to --save-dir too. With --cpu, --distributed-world-size starts that many
processes.
"""

import launcher

launcher.prepare()

if __name__ == "__main__":
    launcher.run("train", __doc__)
