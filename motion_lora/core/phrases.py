"""The words of captions that an absorber's tokens stand in for."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Sequence

from .errors import ClipError

_SMALL_WORDS = frozenset(("a", "an", "the", "and", "or", "of", "on", "over", "in", "at", "with", "under", "by", "is"))


def split_phrases(absorb_words: str) -> tuple[str, ...]:
    """The phrases of a comma-separated list: "red circle, sand" -> ("red circle", "sand")."""
    return tuple(phrase for part in absorb_words.split(",") if (phrase := " ".join(part.split())))


def shared_phrases(caption: str, appearance_caption: str, limit: int) -> str:
    """The phrases that both captions hold, longest first at most `limit`, comma-separated in the caption's order.

    What to absorb when nobody said: "a red car races over sand" and "a red car over sand" give "red car, sand".
    """
    words, others = (re.findall(r"[\w'-]+|[^\w\s]", text.lower()) for text in (caption, appearance_caption))
    blocks = difflib.SequenceMatcher(None, words, others, autojunk=False).get_matching_blocks()
    runs = [run for block in blocks for run in _unpunctuated(words[block.a : block.a + block.size])]
    phrases = [phrase for run in runs if (phrase := _without_small_words(run))]
    chosen = sorted(phrases, key=lambda phrase: len(phrase.split()), reverse=True)[:limit]
    return ", ".join(phrase for phrase in phrases if phrase in chosen)


def missing_phrases(caption: str, absorb_words: str) -> tuple[str, ...]:
    """The phrases that do not stand in the caption, whole words and any case."""
    return tuple(phrase for phrase in split_phrases(absorb_words) if not _pattern(phrase).search(caption))


def substitute(caption: str, names: Sequence[str], absorb_words: str) -> str:
    """The caption with tokens where the words stood: each phrase gets its even share of `names`, in order.

    ("a red circle over sand", ("<1>", "<2>"), "red circle") -> "a <1> <2> over sand". Raises ClipError when a phrase
    is not in the caption or there are fewer tokens than phrases.
    """
    phrases = split_phrases(absorb_words)
    if absent := missing_phrases(caption, absorb_words):
        words = ", ".join(absent)
        raise ClipError(f"The words to absorb {words!r} are not in the caption {caption!r}; use words of it.")
    shares = [" ".join(share) for share in even_shares(names, phrases)]
    # All at once and longest first, so that no phrase is looked for in another one's tokens.
    order = sorted(range(len(phrases)), key=lambda index: len(phrases[index]), reverse=True)
    pattern = "|".join(f"(?P<p{index}>{_pattern(phrases[index]).pattern})" for index in order)
    return re.sub(pattern, lambda found: shares[int(str(found.lastgroup)[1:])], caption, flags=re.IGNORECASE)


def _unpunctuated(words: Sequence[str]) -> list[list[str]]:
    """The words as runs without punctuation: a comma separates phrases."""
    groups = itertools.groupby(words, key=lambda word: bool(re.match(r"[\w'-]", word)))
    return [list(group) for is_word, group in groups if is_word]


def _without_small_words(run: Sequence[str]) -> str:
    """The run without articles and prepositions at its ends."""
    kept = [index for index, word in enumerate(run) if word not in _SMALL_WORDS]
    return " ".join(run[kept[0] : kept[-1] + 1]) if kept else ""


def _pattern(phrase: str) -> re.Pattern[str]:
    words = r"\s+".join(re.escape(word) for word in phrase.split())
    return re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)


def even_shares(names: Sequence[str], phrases: Sequence[str]) -> list[Sequence[str]]:
    """The names dealt out to the phrases in order, as evenly as can be; raises ClipError where they do not reach."""
    if not phrases:
        raise ClipError("There are no words to absorb; name words of the caption that describe the look.")
    if len(names) < len(phrases):
        raise ClipError(
            f"There are {len(names)} tokens for the {len(phrases)} phrases {', '.join(phrases)!r}; "
            "use at least one token per phrase."
        )
    bounds = [round(index * len(names) / len(phrases)) for index in range(len(phrases) + 1)]
    return [names[start:end] for start, end in itertools.pairwise(bounds)]
