"""Prompts of the playground's world: read back as the scene that they ask for, and other looks to ask for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from . import world

_FORM = re.compile(
    rf"a (?P<fill>striped )?(?P<colour>{'|'.join(world.COLOURS)}) (?P<shape>{'|'.join(world.SHAPES)})"
    rf"(?: (?P<motion>{'|'.join(world.MOTIONS.values())}))? over (?P<background>{'|'.join(world.BACKGROUNDS)})"
)


def asked_scene(prompt: str) -> world.Scene | None:
    """The scene of a prompt in the form of `world.caption` or `world.appearance_caption`; None for any other text.

    Without motion words the motion is "still", which no score of looks depends on.
    """
    found = _FORM.fullmatch(" ".join(prompt.lower().split()).rstrip("."))
    if found is None:
        return None
    named = {words: motion for motion, words in world.MOTIONS.items()}
    return world.Scene(
        shape=found["shape"],
        colour=found["colour"],
        background=found["background"],
        motion=named[found["motion"]] if found["motion"] else "still",
        fill="striped" if found["fill"] else "plain",
    )


def other_looks(reference: world.Scene, count: int) -> list[world.Scene]:
    """The reference's motion with looks that share no shape, colour or background with it: up to 4, all plain.

    Whatever of the reference turns up in videos of them has leaked.
    """
    return [
        world.Scene(
            motion=reference.motion,
            shape=_other(world.SHAPES, reference.shape, 1 + i),
            colour=_other(tuple(world.COLOURS), reference.colour, 3 + 2 * i),
            background=_other(world.BACKGROUNDS, reference.background, 1 + (i + 1) % 4),
            fill="plain",
        )
        for i in range(count)
    ]


def _other(values: Sequence[str], value: str, away: int) -> str:
    """Another value; `away` is never a multiple of how many there are."""
    return values[(values.index(value) + away) % len(values)]
