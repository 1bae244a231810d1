"""The pictures of docs/METHODS.md: one SVG per method, all in the visual language of drawing.py.

    python tools/draw_methods.py        writes docs/images/methods/*.svg

What a row says of a training pass is compared by tests/test_docs.py with the method's row in
motion_lora/methods/table.py, and the numbers here with its defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from drawing import (
    BLOCK,
    CENTRE,
    CLIP,
    ERROR,
    FRAME,
    GAP,
    INK,
    KINDS,
    LEVEL_LEFT,
    LEVEL_WIDTH,
    MARGIN,
    MOVED,
    MUTED,
    NOISE,
    RIGHT,
    RULE,
    STRIP,
    TRAINED,
    USED,
    Drawing,
    Level,
    Look,
    Panel,
    Picture,
    Row,
    Strip,
    block_left,
    draw_fate,
    draw_strip,
)

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images" / "methods"

# The appearance highway's presets on ModelScope's twelve skips: those re-routed, and those scaled.
HIGHWAYS = {"code": ((7, 8), (5, 6, 7, 8)), "all": ((1, 2, 4, 5, 7, 8), (1, 2, 4, 5, 7, 8))}
HIGHWAY_SCALE = 1.1
SKIPS = 12
# Of Many Looks.
LOOK_STRENGTH, LOOK_SIMILARITY = 0.45, 0.6
SPATIAL_PATH_PROBABILITY = 0.8
# Of an example of a strength schedule.
SCHEDULE_END = 0.7

NEW_PROMPT = ('"a blue square circling', 'around over snow"')
MOTION_KEPT = Level({"temporal": "temporal-attention"}, uses=("temporal",))


def sampled(title: str, note: str, level: Level, video: Look = MOVED, words: Sequence[str] = NEW_PROMPT) -> Row:
    """A row of sampling: noise and a new prompt in, a video out."""
    return Row(title, note, (Strip(NOISE),), ("noise, and a new prompt:", *words), level, video=Strip(video))


# Customize-A-Video --------------------------------------------------------------------------------------------------

ABSORB = Row(
    "1  Absorb the look.",
    "Single frames, every temporal layer bypassed. LoRA and tokens are trained apart.",
    (Strip(CLIP, order=(3, 0, 4, 2, 1), patches=True),),
    ("frames in no order, patches,", '"a <1> <2> over sand"'),
    Level({"absorber": "spatial-attention"}, trains=("absorber",), bypass=True),
    (ERROR, "for each alone"),
    (("held", "held in stage 2"),),
    source=("customize-a-video", 0, 0),
    tokens="trains",
)

CUSTOMIZE_A_VIDEO = Picture(
    "Customize-A-Video",
    "Ren et al. 2024, arXiv 2402.14780",
    "Customize-A-Video: an absorber learns the look from single frames, a temporal LoRA learns the motion beside it",
    "Stage 1: frames in no order, cropped to random patches, pass the UNet with every temporal layer bypassed; a LoRA "
    "on the spatial attentions and learned tokens in the caption are trained, apart from each other. Stage 2: the "
    "whole clip passes the full UNet; both are active and frozen, and a LoRA on the temporal attentions is trained. "
    "Only that LoRA is kept and used in sampling.",
    (
        ABSORB,
        Row(
            "2  Learn the motion.",
            "The whole clip. What the absorber explains need not go into the motion LoRA.",
            (Strip(CLIP),),
            ('"a <1> <2> circling', 'around over sand"'),
            Level(
                {"absorber": "spatial-attention", "temporal": "temporal-attention"},
                trains=("temporal",),
                holds=("absorber",),
            ),
            (ERROR,),
            (("dropped", "absorber: thrown away"), ("kept", "motion LoRA: in the file")),
            source=("customize-a-video", 2, 0),
            tokens="holds",
        ),
        sampled("3  Sample.", "The base with the motion LoRA alone.", MOTION_KEPT),
    ),
)

# MotionDirector and what builds on it -------------------------------------------------------------------------------


def dual_path(method: str, targets: str) -> tuple[Row, Row]:
    """Both passes of MotionDirector's training step; `targets` is the temporal LoRA's preset."""
    share = f"{100 * SPATIAL_PATH_PROBABILITY:g} %"
    both = {"spatial": "spatial-self-ff", "temporal": targets}
    spatial = Row(
        "Each step, spatial path.",
        f"One random frame, every temporal layer bypassed; in {share} of the steps.",
        (Strip(CLIP, faded=(0, 1, 2, 4)),),
        ("one frame at random,", "full caption,", "one spatial LoRA per clip"),
        Level(both, trains=("spatial",), bypass=True),
        (f"L_{{spatial}} = {ERROR}", "of this frame"),
        (("dropped", "look: a file of its own"),),
        source=(method, 0, 0),
        linked=True,
    )
    temporal = Row(
        "The same step, temporal path.",
        "All frames, same noise and timestep; in a step without the other path its LoRA is off.",
        (Strip(CLIP, marks={1: TRAINED}),),
        ("all frames, full caption;", "outlined: random anchor a"),
        Level(both, trains=("temporal",), holds=("spatial",)),
        ("L_{org} + L_{ad}", f"L_{{org}} = {ERROR}", "L_{ad}: of \u221a2 x_{f} \u2212 x_{a}"),
        (("kept", "motion LoRA: in the file"),),
        source=(method, 0, 1),
    )
    return spatial, temporal


MOTIONDIRECTOR = Picture(
    "MotionDirector",
    "Zhao et al. 2023, arXiv 2310.08465",
    "MotionDirector: in each step a spatial LoRA learns from one frame, then a temporal LoRA from all of them",
    "Spatial path: one random frame passes the UNet with every temporal layer bypassed and a spatial LoRA is trained. "
    "Temporal path, with the same noise and timestep: all frames pass the full UNet, the spatial LoRA is active and "
    "frozen, and a temporal LoRA on attentions and feed-forward is trained by the plain loss plus the loss on the "
    "differences to a random anchor frame. The temporal LoRA alone is used in sampling.",
    (
        *dual_path("motiondirector", "temporal-all"),
        sampled(
            "Sample.",
            "The base with the motion LoRA alone.",
            Level({"temporal": "temporal-all"}, uses=("temporal",)),
        ),
    ),
)

RING = Look("ring", "purple", "meadow")

MOTIONDIRECTOR_IMAGE = Picture(
    "MotionDirector, image path",
    "Zhao et al. 2023, arXiv 2310.08465, image configurations",
    "MotionDirector's image path: a spatial LoRA learns a look from images, and sampling adds another clip's motion",
    "One image, drawn at random, passes the UNet with every temporal layer bypassed; a spatial LoRA on self-attention "
    "and feed-forward is trained and kept. In sampling it may go on a stack with a motion LoRA of another clip.",
    (
        Row(
            "Train.",
            "The spatial path alone: one image or frame at a time, every temporal layer bypassed.",
            (Strip(RING, order=(3, 1, 0, 4, 2), faded=(0, 2, 3, 4)),),
            ("one image, several, or a", "clip's frames; mirrored", "in half of the steps"),
            Level({"spatial": "spatial-self-ff"}, trains=("spatial",), bypass=True),
            (f"L_{{spatial}} = {ERROR}",),
            (("kept", "look LoRA: in the file"),),
            source=("motiondirector-image", 0, 0),
        ),
        sampled(
            "Sample.",
            "On a stack with the motion of another clip: the look of A, the motion of B.",
            Level(
                {"spatial": "spatial-self-ff", "temporal": "temporal-attention"},
                uses=("spatial", "temporal"),
            ),
            RING,
            ('"a purple ring circling', 'around over meadow"'),
        ),
    ),
)

# Separate Motion from Appearance ------------------------------------------------------------------------------------

_PROJECTIONS = ("Q", "K", "V", "Out", "FF")
PURIFIED = (
    ("temporal-all", "MotionDirector", "Q K V Out FF"),
    ("tap-k-out", "the authors' code", "K Out"),
    ("tap-k", "the paper as reported", "K"),
    ("tap-qk", "as its abstract says", "Q K"),
)


def paint_purification(drawing: Drawing, y: float) -> None:
    """What each preset adapts in a temporal layer: five projections, those with a LoRA filled."""
    for number, (preset, said, adapted) in enumerate(PURIFIED):
        x = MARGIN + number * 208
        drawing.box(x, y, 196, 92, "#f6f8fa", 8, stroke=RULE)
        drawing.text(x + 10, y + 20, f"**{preset}**")
        drawing.text(x + 10, y + 37, said, fill=MUTED)
        for place, projection in enumerate(_PROJECTIONS):
            left, trained = x + 10 + 36 * place, projection in adapted.split()
            fill, ink = (TRAINED, "#ffffff") if trained else (KINDS["temporal"][0], INK)
            drawing.box(left, y + 50, 32, 30, fill, stroke=TRAINED if trained else KINDS["temporal"][1])
            drawing.text(left + 16, y + 70, projection, fill=ink, bold=trained, anchor="middle")


def paint_highway(drawing: Drawing, top: float) -> None:
    """Over a level: a skip's start on the highway and in the stock network, and where the main path goes."""
    middle, end = top + CENTRE, LEVEL_LEFT + LEVEL_WIDTH
    start = block_left(3) - GAP / 2
    drawing.line(f"M{start:g} {middle:g}V{top + 18:g}q0 -8 8 -8H{RIGHT - 14}", USED, 3)
    drawing.arrow(RIGHT - 15, top + 10, RIGHT - 2, USED, 3)
    drawing.add("circle", cx=start, cy=middle, r=4, fill=USED)
    drawing.text(RIGHT + 4, top + 14, "**skip on the highway**", fill=USED)
    drawing.arrow(end + 1, middle, RIGHT - 2)
    drawing.text(RIGHT + 4, middle + 4, "main path, unchanged")
    leave = block_left(3) + BLOCK + 4
    drawing.line(f"M{leave:g} {middle:g}V{top + 64:g}q0 6 6 6H{RIGHT - 10}", "#9aa5b1", 1.6, stroke_dasharray="4 3")
    drawing.arrow(RIGHT - 11, top + 70, RIGHT - 2, "#9aa5b1")
    drawing.text(RIGHT + 4, top + 74, "stock skip, not taken", fill=MUTED)


def paint_skips(drawing: Drawing, y: float) -> None:
    """Which of the twelve skips each preset re-routes and scales."""
    for number, (preset, (moved, scaled)) in enumerate(HIGHWAYS.items()):
        x = MARGIN + number * 418
        drawing.text(x, y + 17, f"**{preset}**")
        for skip in range(SKIPS):
            left = x + 40 + 29 * skip
            fill, ink = (USED, "#ffffff") if skip in moved else ("#eceff2", MUTED)
            drawing.box(left, y, 25, 25, fill, 4)
            drawing.text(left + 12.5, y + 17, str(skip), fill=ink, anchor="middle")
            if skip in scaled:
                drawing.box(left, y + 29, 25, 4, TRAINED, 2)
    drawing.box(MARGIN, y + 48, 18, 14, USED, 3)
    drawing.text(MARGIN + 24, y + 59, "starts at the spatial attention", fill=MUTED)
    drawing.box(MARGIN + 238, y + 53, 18, 4, TRAINED, 2)
    drawing.text(MARGIN + 262, y + 59, f"multiplied by {HIGHWAY_SCALE:g}", fill=MUTED)
    drawing.text(MARGIN + 400, y + 59, "numbers: ModelScope's skips, from the input down", fill=MUTED)


def paint_schedule(drawing: Drawing, y: float) -> None:
    """The steps of a sampling, from noise to video, with the motion LoRA in the first of them."""
    draw_strip(drawing, MARGIN, y + 8, Strip(NOISE))
    draw_steps(drawing, LEVEL_LEFT, y + 10, LEVEL_WIDTH, SCHEDULE_END)
    drawing.text(LEVEL_LEFT, y + 54, f"motion LoRA in use (end={SCHEDULE_END:g})", fill=USED)
    drawing.text(LEVEL_LEFT + LEVEL_WIDTH, y + 54, "base alone", fill=MUTED, anchor="end")
    drawing.arrow(MARGIN + STRIP + 2, y + 23, LEVEL_LEFT - 2)
    drawing.arrow(LEVEL_LEFT + LEVEL_WIDTH + 1, y + 23, RIGHT - 3)
    draw_strip(drawing, RIGHT, y + 8, Strip(MOVED))


def draw_steps(drawing: Drawing, x: float, y: float, width: float, share: float, height: float = 26) -> None:
    """Twenty sampling steps as cells; the first `share` of them in the colour of a LoRA in use."""
    count, pitch = 20, width / 20
    for step in range(count):
        fill = USED if step < round(share * count) else "#dfe4e9"
        drawing.box(round(x + step * pitch, 1), y, round(pitch - 2, 1), height, fill, 2)


SEPARATE_MOTION_APPEARANCE = Picture(
    "Separate Motion from Appearance",
    "Liu et al. 2025, arXiv 2501.16714",
    "Separate Motion from Appearance: MotionDirector's step with few projections adapted, and a highway for the skips",
    "Training is MotionDirector's, but the temporal LoRA adapts only key and output of the temporal attentions (tap-k-"
    "out), only the key (tap-k), or query and key (tap-qk). In sampling, skip connections start at the spatial "
    "attention and not at the temporal attention behind it, while the main path stays as it is, and a schedule ends "
    "the motion LoRA before the last steps.",
    (
        *dual_path("separate-motion-appearance", "tap-k-out"),
        Panel(
            "Temporal attention purification.",
            "The projections of each temporal layer that have a LoRA, by target preset:",
            142,
            paint_purification,
        ),
        Row(
            "Sample, with the appearance highway.",
            "A skip to the decoder leaves out the temporal attention.",
            (Strip(NOISE),),
            ("noise, and a new prompt:", *NEW_PROMPT),
            Level({"temporal": "tap-k-out"}, uses=("temporal",)),
            extra=paint_highway,
        ),
        Panel("Its presets.", "Which skips are changed:", 110, paint_skips),
        Panel(
            "Strength schedule.", "The motion LoRA ends early, and the base finishes the details.", 106, paint_schedule
        ),
    ),
)

# Many Looks ---------------------------------------------------------------------------------------------------------

REDRAWN = Look("triangle", "green", "snow")
SECOND = Look("cross", "pink", "night")
LOST = Look("square", "yellow", "meadow")


def paint_selection(drawing: Drawing, y: float) -> None:
    """The clip beside three copies: two that move alike, one whose object lost its place."""
    shown = (
        (Strip(CLIP), "the clip", "", ""),
        (Strip(REDRAWN), "changes alike", "kept", "kept"),
        (Strip(SECOND), "changes alike", "kept", "kept"),
        (Strip(LOST, order=(2, 0, 0, 3, 1)), "places lost", "dropped", "left out"),
    )
    for number, (strip, words, state, fate) in enumerate(shown):
        x = MARGIN + number * (RIGHT - MARGIN) / 3
        draw_strip(drawing, x, y, strip)
        drawing.text(x, y + FRAME + 24, words, fill=MUTED)
        if state:
            draw_fate(drawing, y + FRAME + 9, state, fate, x + 92, 70)


MANY_LOOKS = Picture(
    "Many Looks",
    "this project",
    "Many Looks: the clip's frames are redrawn in other looks, and one temporal LoRA learns the motion of all copies",
    "1: an absorber learns the clip's look, as in Customize-A-Video. 2: the clip's frames are noised part of the way "
    "and denoised under another caption with every temporal layer bypassed and no LoRA, once per look. 3: copies that "
    "no longer change where and when the clip does are left out. 4: a LoRA on all temporal layers, whose kernels "
    "over frames sum to zero, learns from the clip, beside the absorber, and from the copies, without it, in turn. "
    "5: it is sampled with alone.",
    (
        replace(ABSORB, fate=(("held", "held in 4, for the clip"),), source=("many-looks", 0, 0)),
        Row(
            "2  Redraw the frames under other captions.",
            "Every temporal layer bypassed: no motion of the base gets in.",
            (Strip(CLIP, noisy=LOOK_STRENGTH),),
            (f"noised by {LOOK_STRENGTH:g} of the way,", '"a green triangle', 'over snow"'),
            Level(bypass=True),
            video=Strip(REDRAWN),
            extra=lambda drawing, top: drawing.text(RIGHT, top + 75, "one copy per look", fill=MUTED),
        ),
        Panel(
            "3  Leave out copies that lost the motion.",
            f"Where and when they change must be like the clip (\u2265 {LOOK_SIMILARITY:g}).",
            118,
            paint_selection,
        ),
        Row(
            "4  Learn the motion.",
            "The clip, with the absorber, and its copies, without, in turn: the motion is common to them.",
            (Strip(CLIP), Strip(REDRAWN), Strip(SECOND)),
            ('"a green triangle', "circling around", 'over snow", ...'),
            Level(
                {"absorber": "spatial-attention", "temporal": "temporal-difference"},
                trains=("temporal",),
                holds=("absorber",),
            ),
            (ERROR,),
            (("kept", "motion LoRA: in the file"),),
            source=("many-looks", 2, 0),
        ),
        sampled("5  Sample.", "Base and motion LoRA.", Level({"temporal": "temporal-difference"}, uses=("temporal",))),
    ),
)

# Ablations ----------------------------------------------------------------------------------------------------------


def ablation(method: str, note: str, level: Level, kept: str) -> Row:
    """A method's idea taken out: one pass over the whole clip."""
    caption = ('"a red circle circling', 'around over sand"')
    return Row(f"{method}.", note, (Strip(CLIP),), caption, level, (ERROR,), (("kept", kept),), source=(method, 0, 0))


_BOTH = {"spatial": "spatial-attention", "temporal": "temporal-attention"}

ABLATIONS = Picture(
    "Ablations",
    "one pass, the whole clip, no absorber",
    "The ablations: the whole clip is learned by a temporal LoRA, by a spatial LoRA, or by both together",
    "Three methods that see the whole clip with the full UNet, without an absorber or a second path: a LoRA on the "
    "temporal attentions, on the spatial attentions, or on both. What was trained is kept and used in sampling.",
    (
        ablation(
            "temporal-only",
            "Customize-A-Video without its absorber.",
            Level(_BOTH, trains=("temporal",)),
            "temporal LoRA: in the file",
        ),
        ablation(
            "spatial-only",
            "A LoRA that is blind to time sees the whole clip.",
            Level(_BOTH, trains=("spatial",)),
            "spatial LoRA: in the file",
        ),
        ablation(
            "spatial-temporal",
            "Both learn from the whole clip together.",
            Level(_BOTH, trains=("spatial", "temporal")),
            "both LoRAs: in the file",
        ),
    ),
)

# Absorbers of others, and editing -----------------------------------------------------------------------------------

EDITED = Look("circle", "blue", "snow")
_AXIS = LEVEL_LEFT + 10, LEVEL_LEFT + LEVEL_WIDTH - 40


@dataclass(frozen=True)
class Lane:
    """A way from a clip `share` of the way to noise, and back; `there` says how, `result` what comes of it."""

    name: str
    there: str
    share: float
    look: Look
    result: str

    def paint(self, drawing: Drawing, y: float) -> None:
        """The lane with its top at y."""
        left, right = _AXIS
        end = left + self.share * (right - left)
        draw_strip(drawing, MARGIN, y + 6, Strip(CLIP))
        drawing.text(MARGIN, y + 54, f"**{self.name}**")
        drawing.text(left, y + 4, self.there, fill=MUTED)
        drawing.arrow(left, y + 13, end)
        drawing.arrow(end, y + 29, left, USED, 2)
        drawing.text(left, y + 46, "denoised under a new prompt, with the stack's LoRAs", fill=USED)
        if end == right:
            draw_strip(drawing, right + 4, y + 6, Strip(NOISE, order=(0,)))
        else:
            drawing.line(f"M{end + 1:g} {y + 8:g}v26", INK, 1.4)
        draw_strip(drawing, RIGHT, y + 6, Strip(self.look))
        drawing.text(RIGHT, y + 54, self.result, fill=MUTED)


LANES = (
    Lane(
        "invert, --noise-prior 1",
        "the clip's own noise, by DDIM inversion on the base",
        1.0,
        EDITED,
        "same layout, new look",
    ),
    Lane(
        "--noise-prior p",
        "\u221ap \u00b7 inverted + \u221a(1 \u2212 p) \u00b7 random",
        1.0,
        MOVED,
        "layout held in part",
    ),
    Lane("--edit-strength s", "random noise, s of the way", 0.6, EDITED, "near the clip's frames"),
)


def paint_starts(drawing: Drawing, y: float) -> None:
    """The lanes under one axis."""
    drawing.text(_AXIS[0], y + 8, "clip", fill=MUTED)
    drawing.text(_AXIS[1] + 34, y + 8, "noise", fill=MUTED, anchor="end")
    for number, lane in enumerate(LANES):
        lane.paint(drawing, y + 24 + 78 * number)


def foreign(title: str, note: str, words: tuple[str, ...], level: Level) -> Row:
    """Customize-A-Video's second stage with an absorber that was not trained on the clip."""
    fate = (("dropped", "absorber: not in the file"), ("kept", "motion LoRA: in the file"))
    return Row(title, note, (Strip(CLIP),), words, level, (ERROR,), fate, source=("customize-a-video", 2, 0))


ABSORBERS_AND_EDITING = Picture(
    "Absorbers of others, and editing",
    "Customize-A-Video, section 5; MotionDirector's noise prior; SDEdit",
    "Absorbers of others, a LoRA or a tuned model, held frozen while the motion is learned; three ways to edit a clip",
    "A LoRA of the subject, or the spatial weights of a model that was tuned on it, takes the absorber's place, active "
    "and frozen, while a temporal LoRA learns the clip. For editing, sampling starts from the clip: from its own noise "
    "by DDIM inversion, from a mix of that noise with random noise, or from the clip noised part of the way.",
    (
        foreign(
            "Absorber from a LoRA.",
            "Any spatial LoRA that fits holds the look.",
            ("the clip, full caption;", "--absorber FILE"),
            Level({"temporal": "temporal-attention"}, trains=("temporal",), holds=("absorber",)),
        ),
        foreign(
            "Absorber from a model.",
            "The spatial weights of a model tuned on the subject, as by DreamBooth.",
            ("the clip, full caption;", "--absorber FOLDER"),
            Level({"temporal": "temporal-attention"}, trains=("temporal",), weights=True),
        ),
        Panel("Start from a clip.", "Sampling that does not begin with random noise alone:", 300, paint_starts),
    ),
)

PICTURES: dict[str, Picture] = {
    "customize-a-video": CUSTOMIZE_A_VIDEO,
    "motiondirector": MOTIONDIRECTOR,
    "motiondirector-image": MOTIONDIRECTOR_IMAGE,
    "separate-motion-appearance": SEPARATE_MOTION_APPEARANCE,
    "many-looks": MANY_LOOKS,
    "ablations": ABLATIONS,
    "absorbers-and-editing": ABSORBERS_AND_EDITING,
}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, picture in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(picture.svg(), encoding="ascii", newline="\n")


if __name__ == "__main__":
    main()
