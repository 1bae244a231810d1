"""What one run is made of, worked out once: settings, stages, what each part takes, words to absorb, prompts, tokens.

`make_recipe` resolves; checks, stages and results read. Nothing after it asks the settings what a None stands for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..core.phrases import shared_phrases, substitute
from ..methods.stages import Part, Stage
from .settings import SETTINGS, TrainSettings, absorber_stages, main_stages

if TYPE_CHECKING:
    from ..base.pipeline import VideoPipeline
    from ..core.absorber import Absorber, PlaceholderTokens
    from ..core.clip import Clip


@dataclass(frozen=True)
class PartSettings:
    """What a part takes from the settings."""

    rank: int
    alpha: float
    learning_rate: float
    targets: str


@dataclass(frozen=True, eq=False)
class Recipe:
    """One call of `train` or `train_absorber`, resolved.

    `settings` have no None that stands for another value; `absorbing` are the absorber's stages, `main` the method's;
    `given` is an absorber that is used in place of the former. `words` are each clip's words to absorb, `new_tokens`
    the tokens with which a stage that trains tokens begins (`with_new_tokens`).
    """

    settings: TrainSettings
    clips: tuple[Clip, ...]
    given: Absorber | None
    absorbing: tuple[Stage, ...]
    main: tuple[Stage, ...]
    words: tuple[str, ...]
    new_tokens: PlaceholderTokens | None = None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages in the order in which they run."""
        return (*self.absorbing, *self.main)

    @property
    def trains_tokens(self) -> bool:
        return any(part.is_tokens for stage in self.stages for part in stage.parts)

    def part(self, part: Part) -> PartSettings:
        """What `part` takes; a target preset of the settings replaces the row's."""
        return PartSettings(
            rank=self._for(part, "rank"),
            alpha=self._for(part, "alpha"),
            learning_rate=self._for(part, "learning_rate"),
            targets=getattr(self.settings, part.setting("targets"), None) or part.targets,
        )

    def prompts(self, number: int, tokens: PlaceholderTokens | None, kinds: Iterable[str]) -> dict[str, str]:
        """The captions of clip `number` of these kinds, "full" and "appearance", with `tokens` for its words.

        Raises ClipError when a caption does not hold the words.
        """
        clip = self.clips[number]
        captions = {kind: clip.caption if kind == "full" else clip.appearance_caption for kind in kinds}
        if tokens is None:
            return captions
        words = self.words[number]
        return {kind: substitute(caption, tokens.names_for(words), words) for kind, caption in captions.items()}

    def with_new_tokens(self, pipeline: VideoPipeline) -> Recipe:
        """The recipe with the tokens of `words`, where a stage trains tokens; after the checks, which look at them."""
        from ..base.tokens import initial_tokens

        if not self.trains_tokens:
            return self
        return replace(self, new_tokens=initial_tokens(pipeline, self.words, self.settings.num_tokens))

    def _for(self, part: Part, name: str) -> Any:
        own = getattr(self.settings, setting_name(part, name))
        return getattr(self.settings, name) if own is None else own


def make_recipe(
    clips: Sequence[Clip], settings: TrainSettings, absorber: Absorber | None = None, *, absorber_only: bool = False
) -> Recipe:
    """Resolve one run; `settings` are checked. `absorber_only` leaves out the method's own stages."""
    resolved = settings.resolved()
    return Recipe(
        settings=resolved,
        clips=tuple(clips),
        given=absorber,
        absorbing=() if absorber is not None else absorber_stages(resolved),
        main=() if absorber_only else main_stages(resolved),
        words=tuple(_words_to_absorb(clip, resolved, absorber) for clip in clips),
    )


def setting_name(part: Part, name: str) -> str:
    """The setting that a part's rank, alpha or learning rate comes from: its own, where there is one of that name."""
    own = part.setting(name)
    return own if own in SETTINGS else name


def _words_to_absorb(clip: Clip, settings: TrainSettings, absorber: Absorber | None) -> str:
    """The clip's `absorb_words`; without any, phrases that its two captions share, no more than there are tokens."""
    if clip.absorb_words:
        return clip.absorb_words
    limit = settings.num_tokens
    if absorber is not None and absorber.tokens is not None:
        limit = min(limit, len(absorber.tokens.names))
    return shared_phrases(clip.caption, clip.appearance_caption, limit)
