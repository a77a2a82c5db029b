"""Prompts in; the language of each, and how sure that is, out.

The model is that of py3langid (naive Bayes over pieces of bytes, 139 languages), which comes with
the package. It is asked only where the commonest words of English do not settle it, and of many
texts at once: the package itself takes a tenth of a millisecond a text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.prompts.parts import Split, Table, Vocabulary

_SURE_WORDS = "the with and from their while his which through this"
_SURE = frozenset(_SURE_WORDS.split(" "))
"""Words that are common in English, and in no other language of Latin letters."""
_BESIDE_A = frozenset(["of", "at", "for"])
"""Words that no other language has beside the word `a`."""
_COMMON = _SURE | _BESIDE_A | frozenset(["in", "on", "is", "are", "her", "a", "an", "by", "to"])
ENOUGH = 0.25
"""Share of these among the words from which a text with one of the former is English. Measured on
descriptions of packages: 0.05 % of French and no German sentences are, which quote titles."""
_WORD = re.compile(r"[^\W\d_]+")
PRIOR = 4.0
"""How much more often a caption is English than any other language, before it is read. The model
takes all to be as frequent, and `a kraken in deep blue water` for Dutch."""
_LEFT_OUT = frozenset(["pcm"])
"""Nigerian Pidgin: nearly all English captions that are not taken for English are taken for it."""
_AT_ONCE = 1_024
_SURE_BIT, _A_BIT, _BESIDE_BIT = 1, 2, 4


class _Model:
    """What py3langid's model is made of: an automaton over bytes, and weights of what it finds."""

    def __init__(self) -> None:
        model = identifier()
        self.moves = np.asarray(model.tk_nextmove)
        self.rows = np.asarray(model.tk_row).astype(np.int64) << 8
        self.found = np.asarray(model.tk_output).astype(np.int64)
        # In rows: anything else is copied whole for every product.
        self.weights = np.ascontiguousarray(model.nb_ptc, dtype=np.float32)
        self.prior = np.asarray(model.nb_pc)
        self.codes = list(map(str, model.nb_classes))
        self.english = self.codes.index("en")
        # One language in two scripts has two columns: they are added up in the first.
        first = [self.codes.index(code) for code in self.codes]
        self.twins = [(first[n], n) for n in range(len(first)) if first[n] != n]

    def probabilities(self, texts: Sequence[bytes]) -> NDArray[np.float32]:
        """Of each language, by `codes`: float32, shape (texts, languages)."""
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        lengths = np.array([len(texts[place]) for place in order])
        data = np.zeros((len(texts), int(lengths[0])), np.uint8)
        for row, place in enumerate(order):
            data[row, : lengths[row]] = np.frombuffer(texts[place], np.uint8)
        state = np.zeros(len(texts), np.int64)
        keys = []
        for step in range(data.shape[1]):
            alive = int(np.searchsorted(-lengths, -step, side="left"))
            state = self.moves[self.rows[state[:alive]] + data[:alive, step]].astype(np.int64)
            feature = self.found[state]
            (hits,) = np.nonzero(feature >= 0)
            keys.append(hits * len(self.weights) + feature[hits])
        every, counts = np.unique(np.concatenate(keys), return_counts=True)
        scores = self._scores(every, np.log1p(counts.astype(np.float32)), len(texts))
        # As there: by the root of the length, so that short and long texts are as sure.
        scores /= np.sqrt(np.maximum(lengths, 1)).astype(np.float32)[:, None]
        shares: NDArray[np.float32] = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        for one, twin in self.twins:
            shares[:, one] += shares[:, twin]
            shares[:, twin] = 0.0
        back = np.empty_like(shares)
        back[order] = shares
        return back

    def _scores(
        self, every: NDArray[np.int64], counts: NDArray[np.float32], texts: int
    ) -> NDArray[np.float32]:
        from scipy.sparse import csr_array

        row, feature = np.divmod(every, len(self.weights))
        ends = np.searchsorted(row, np.arange(texts + 1))
        found = csr_array((counts, feature, ends), shape=(texts, len(self.weights)))
        scores: NDArray[np.float32] = found @ self.weights + self.prior
        scores[np.diff(ends) == 0] = 0.0  # nothing known in it: any language
        return scores


@cache
def identifier() -> Any:
    """The model of py3langid, without the languages that are left out."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    found = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    found.set_languages([code for code in found.labels if code not in _LEFT_OUT])
    return found


@cache
def _model() -> _Model:
    return _Model()


_CODES = (
    "ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu "
    "ext fa fi fo fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is "
    "it ja jv ka kab kik kk km kn ko ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne "
    "nl nn no nso oc om or pa pl ps pt qu ro ru rw sa sdh se si sk sl sn so sq sr st sv sw ta te "
    "tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu zxx"
)
LANGUAGES = frozenset(_CODES.split(" "))
"""Codes of all languages that are told apart; `zxx` is no language, as a file's name."""


def _counts(part: str) -> tuple[int, int, int]:
    """Of a part of a prompt: its words, those that are common in English, and what they settle."""
    words = _WORD.findall(part.casefold())
    told = _SURE_BIT * (not _SURE.isdisjoint(words)) + _BESIDE_BIT * (
        not _BESIDE_A.isdisjoint(words)
    )
    return len(words), sum(map(_COMMON.__contains__, words)), told + _A_BIT * ("a" in words)


def _bytes(text: str) -> bytes:
    return unicodedata.normalize("NFC", text.lower() if text.isupper() else text).encode()


class Languages:
    """Tells the languages of normalised prompts, each by its most probable one.

    Args:
        vocabulary: of their parts.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._table = Table(vocabulary, _counts, 3)

    def __call__(self, split: Split) -> tuple[list[str | None], NDArray[np.float64]]:
        """Codes, ISO 639, and their probabilities, 0 to 1.

        The code is None where there is no letter, and the probability 1 where the commonest words
        settled it.
        """
        words, common, told = self._table.of(split)
        words, common, told = split.sums(words), split.sums(common), split.ored(told)
        both = _A_BIT | _BESIDE_BIT
        sure = ((told & _SURE_BIT) > 0) | ((told & both) == both)
        settled = sure & (common >= np.maximum(2, ENOUGH * words))
        codes: list[str | None] = ["en"] * len(split.texts)
        probabilities = np.ones(len(split.texts))
        for place in np.flatnonzero(words == 0).tolist():
            codes[place] = None
        probabilities[words == 0] = 0.0
        left = np.flatnonzero(~settled & (words > 0))
        for start in range(0, len(left), _AT_ONCE):
            places = left[start : start + _AT_ONCE]
            shares = _model().probabilities([_bytes(split.texts[place]) for place in places])
            shares[:, _model().english] *= PRIOR
            shares /= shares.sum(axis=1, keepdims=True)
            best = shares.argmax(axis=1)
            probabilities[places] = np.minimum(1.0, shares[np.arange(len(places)), best])
            for place, code in zip(places.tolist(), best.tolist(), strict=True):
                codes[place] = _model().codes[code]
        return codes, probabilities
