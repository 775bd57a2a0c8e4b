"""Subword vocabularies that two languages share: sentencepiece on running text, or subword-nmt on tokenised text."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from attention_pruning import InputError

PIECES_FILE, CODES_FILE = "sentencepiece.model", "code"


class Subwords(Protocol):
    """Something that cuts a line of running text into subwords."""

    @property
    def description(self) -> dict[str, Any]:
        """JSON values: kind, size, version."""

    def cut(self, line: str, language: str) -> str:
        """The subwords of a line, with blanks between them."""

    def save(self, folder: Path) -> None:
        """Write the model's file into a folder."""


class SentencePieces:
    """Byte-pair encoding by sentencepiece; joining pieces gives back the text exactly, white space squeezed.

    fairseq undoes it with ``--remove-bpe sentencepiece``.
    """

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def learn(cls, lines: Iterable[str], size: int) -> SentencePieces:
        """Learn ``size`` pieces. The same lines always give the same pieces.

        Raises
        ------
        InputError
            If the text is too small, or has too many characters, for that many.
        """
        import sentencepiece

        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=model,
                model_type="bpe",
                vocab_size=size,
                character_coverage=1.0,
                normalization_rule_name="identity",
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"vocabulary: expected a size that the text allows, found {size} ({reason})") from error
        return cls(model.getvalue())

    @property
    def description(self) -> dict[str, Any]:
        return {"kind": "sentencepiece bpe", "size": self._processor.get_piece_size()}

    def cut(self, line: str, language: str) -> str:
        return " ".join(self._processor.encode(line, out_type=str))

    def save(self, folder: Path) -> None:
        (folder / PIECES_FILE).write_bytes(self._model)


class MosesBPE:
    """Moses tokens (sacremoses), perhaps in lower case, cut by subword-nmt: the way of fairseq's examples.

    fairseq undoes it with ``--remove-bpe --tokenizer moses``.

    Parameters
    ----------
    codes : str
        subword-nmt's merge operations.
    lower_case : bool
        Before cutting.
    aggressive_dashes : bool
        Moses' ``-a``: hyphens become tokens of their own.
    """

    def __init__(self, codes: str, *, lower_case: bool = False, aggressive_dashes: bool = False) -> None:
        from subword_nmt.apply_bpe import BPE

        self._codes = codes
        self._bpe = BPE(io.StringIO(codes))
        self._lower_case, self._aggressive = lower_case, aggressive_dashes

    @classmethod
    def learn(
        cls, lines: Iterable[tuple[str, str]], merges: int, *, lower_case: bool = False, aggressive_dashes: bool = False
    ) -> MosesBPE:
        """Learn merge operations from pairs of language and running text, both languages together."""
        from subword_nmt.learn_bpe import learn_bpe

        tokens = (moses_tokens(line, language, lower_case, aggressive_dashes) for language, line in lines)
        codes = io.StringIO()
        learn_bpe(tokens, codes, merges)
        return cls(codes.getvalue(), lower_case=lower_case, aggressive_dashes=aggressive_dashes)

    @property
    def description(self) -> dict[str, Any]:
        merges = self._codes.count("\n") - 1
        flags = {"lower_case": self._lower_case, "aggressive_dashes": self._aggressive}
        return {"kind": "moses tokens, subword-nmt", "merges": merges, **flags}

    def cut(self, line: str, language: str) -> str:
        return self._bpe.process_line(moses_tokens(line, language, self._lower_case, self._aggressive))

    def save(self, folder: Path) -> None:
        (folder / CODES_FILE).write_text(self._codes, encoding="utf-8")


def load_subwords(folder: str | Path, description: Mapping[str, Any]) -> Subwords:
    """Read what `Subwords.save` wrote.

    Parameters
    ----------
    description : mapping
        Its `Subwords.description`.

    Raises
    ------
    InputError
        If the folder has no such file.
    """
    pieces, codes = Path(folder) / PIECES_FILE, Path(folder) / CODES_FILE
    if pieces.is_file():
        return SentencePieces(pieces.read_bytes())
    if codes.is_file():
        flags = {name: bool(description.get(name)) for name in ("lower_case", "aggressive_dashes")}
        return MosesBPE(codes.read_text(encoding="utf-8"), **flags)
    raise InputError(f"{folder}: expected the subwords of a corpus, {PIECES_FILE} or {CODES_FILE}, found neither")


_tokenizers: dict[str, Any] = {}


def moses_tokens(line: str, language: str, lower_case: bool = False, aggressive_dashes: bool = False) -> str:
    """A line's tokens with blanks between them, special characters escaped as Moses does."""
    from sacremoses import MosesTokenizer

    if language not in _tokenizers:
        _tokenizers[language] = MosesTokenizer(lang=language)
    text = _tokenizers[language].tokenize(line, return_str=True, aggressive_dash_splits=aggressive_dashes)
    return text.lower() if lower_case else text
