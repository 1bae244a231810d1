"""Prompts of the playground's world, read back as the scene that they ask for."""

from __future__ import annotations

import re

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
