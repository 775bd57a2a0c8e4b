"""Scores of translations: what is read, in which order, and that sacrebleu's numbers arrive."""

import json

import pytest
import sacrebleu

from attention_pruning import InputError
from reproduction.scores import bleu as scoring

REFERENCES = ["The cat sat on the mat.", "A dog barks, loudly.", "It is what it is."]
TRANSLATIONS = ["The cat sat on a mat.", "A dog barked loudly.", "It is what it was."]


def generated(order, translations, nbest=1):
    """What fairseq's generate writes: sentences in the order of their batches."""
    text = ""
    for number in order:
        text += f"S-{number}\tx\nT-{number}\ty\n"
        for rank in range(nbest):
            hypothesis = translations[number] if rank == 0 else "worse"
            text += f"H-{number}\t-0.{rank}\tp i e c e s\nD-{number}\t-0.{rank}\t{hypothesis}\nP-{number}\t-0.1 -0.2\n"
    return text + "Generate test with beam=4: BLEU4 = 1.00\n"


@pytest.mark.parametrize("nbest", [1, 3])
def test_generated_files_and_plain_text_score_alike(tmp_path, nbest):
    (tmp_path / "generate-test.txt").write_text(generated([2, 0, 1], TRANSLATIONS, nbest))
    (tmp_path / "plain.txt").write_text("\n".join(TRANSLATIONS) + "\n")
    (tmp_path / "references.txt").write_text("\n".join(REFERENCES) + "\n")
    assert scoring.read_translations(tmp_path / "generate-test.txt") == TRANSLATIONS
    assert scoring.read_translations(tmp_path / "plain.txt") == TRANSLATIONS
    arguments = ["--hypotheses", str(tmp_path / "generate-test.txt"), "--references", str(tmp_path / "references.txt")]
    assert scoring.main([*arguments, "--out", str(tmp_path / "out" / "metrics.json"), "--label", "variant=copy"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["variant"] == "copy" and metrics["effective_sparsity"] is None
    found = metrics["metrics"]["test"]
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(TRANSLATIONS, [REFERENCES]).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(TRANSLATIONS, [REFERENCES]).score)
    signatures = json.loads((tmp_path / "out" / "metrics.run.json").read_text())["signatures"]
    assert (
        signatures["bleu"].startswith("nrefs:1|case:mixed|")
        and f"version:{sacrebleu.__version__}" in signatures["chrf"]
    )


def test_an_empty_translation_counts_as_one(tmp_path):
    (tmp_path / "generate-test.txt").write_text(generated([0, 1, 2], ["", *TRANSLATIONS[1:]]))
    assert scoring.read_translations(tmp_path / "generate-test.txt")[0] == ""


def test_bad_input_is_named(tmp_path):
    file = tmp_path / "generate-test.txt"
    file.write_text(generated([0, 2], TRANSLATIONS))
    with pytest.raises(InputError, match="expected a translation .* of every sentence, found none of 1"):
        scoring.read_translations(file)
    file.write_text("S-0\tx\n")
    with pytest.raises(InputError, match="found none of all of them"):
        scoring.read_translations(file)
    with pytest.raises(InputError, match="expected 3, one for each reference, found 2"):
        scoring.score(TRANSLATIONS[:2], REFERENCES)
    with pytest.raises(InputError, match="none.txt: expected a text file, found"):
        scoring.read_lines(tmp_path / "none.txt")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="invalid byte at offset 0"):
        scoring.read_lines(file)
    file.write_text("")
    with pytest.raises(InputError, match="expected text, found none"):
        scoring.read_lines(file)
