"""Writes what is said twice: help pages and English texts of the nodes, from their schemas and the introductions below.

Also the snapshot of ids, orders and types that saved workflows rely on; look at its diff before you commit it.

    python tests/make_texts.py

`test_nodes.py` fails when the files on disk are not what this would write.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# What a help page says before its tables: what the node is for, and what to know before using it.
INTRODUCTIONS: dict[str, str] = {
    "MotionLoRA_LoadT2VModel": """
The built-in **playground** model needs no download: it draws moving shapes at 64 x 64 pixels and shows in a minute
how everything works.

For real videos put a text-to-video model in diffusers' layout (`unet/`, `vae/`, `text_encoder/`, `tokenizer/`,
`scheduler/`) into `models/diffusers/<name>` and press R. ModelScope (`text-to-video-ms-1.7b`) and ZeroScope
(`zeroscope_v2_576w`) are known by name; with `download` allowed they are fetched once.

The model stays in memory while the workflow is cached and is shared by everything that uses it: nothing ever
changes it.
""",
    "MotionLoRA_ReferenceClip": """
The clip whose motion is learned. Connect a **video** (Load Video) or **images** in order.

* `caption` says what is seen *and* what moves: `a man is skateboarding on a street`.
* `appearance_caption` is the same sentence without its motion: `a man on a street`.
* `absorb_words` are the words for the look that stand in both: `man, street`.

For a method that learns a look (`motiondirector-image`), connect a batch of images and set `num_frames` to 0: all of
them are used, in no order.

Frames are taken at `fps` from `start` on, without changing the speed, then scaled and cropped at the centre. The
node shows exactly the frames that will be trained. Two seconds of one clear motion make a good clip.
""",
    "MotionLoRA_PlaygroundClip": """
A rendered clip for the built-in model, with its captions filled in. The motions `orbit`, `bounce`, `zigzag`,
`spiral`, `diagonal`, `swing`, `eight` and `shake` are new to that model, so they can be taught to it.
""",
    "MotionLoRA_CombineClips": """
Several clips of the *same* motion teach it better than one, because they share nothing else. Each keeps its own
captions. Chain the node for more than two.
""",
    "MotionLoRA_TrainAppearanceAbsorber": """
First half of Customize-A-Video: learns what single frames of the clip look like, with every temporal layer of the
model bypassed. While the motion is learned, the absorber is active and frozen, so the look is explained already and
need not go into the motion LoRA. Afterwards it is thrown away.

Train Motion LoRA trains an absorber by itself. This node is for using one absorber several times, or for looking at
it with Preview Absorber.
""",
    "MotionLoRA_PreviewAbsorber": """
If the pictures look like frames of the clip, the absorber has learned enough. If they look like anything the prompt
could mean, give it more steps.
""",
    "MotionLoRA_LoadAbsorber": """
An absorber belongs to its clip and its base model; it is refused for a base that it does not fit.
""",
    "MotionLoRA_SaveAbsorber": """
Finished absorbers are kept in `output/motion_lora_absorbers` by themselves; this node is for another name.
""",
    "MotionLoRA_AbsorberFromLoRA": """
An absorber need not be trained on the clip: a LoRA of its subject or style, from anywhere, can hold the look while the
motion is learned (Customize-A-Video, section 5). Choose a file, or connect a LoRA from another node, such as one that
Train Motion LoRA made with the method `motiondirector-image` of photos of the subject.

Its spatial layers are used, temporal ones are left out. A file that does not fit is refused with the reason. Look at
it with **Preview Absorber**, with a prompt in the LoRA's own words: it should draw the clip's subject.

The clip's caption should name the look in the words that the LoRA knows.
""",
    "MotionLoRA_AbsorberFromModel": """
A model that was tuned on a subject (DreamBooth) knows its look better than any LoRA. Here its spatial weights stand in
for the base's while the motion is learned; afterwards the motion LoRA is used on the base as ever.

Put the model's folder (`unet/` with safetensors) into `models/diffusers`. It has to have the base's layout: for
ModelScope and ZeroScope that is Stable Diffusion 2.1's, or their own. The base itself is refused, it absorbs nothing.

A training in the background remembers where the model lies and not its gigabytes: leave it there until the training is
done. For the same reason Save Appearance Absorber does not take it.
""",
    "MotionLoRA_TrainingOptions": """
Connect it to Train Motion LoRA or Train Appearance Absorber. Left alone, every setting is the method's own; `default`,
0 and -1 stand for that.

* **Losses**: `debiased_loss` with any method, `min_snr_gamma`.
* **Layers**: `spatial_targets` here, `targets` (TAP among them) on Train Motion LoRA.
* **Noise**: `timestep_low` and `timestep_high`. Motion is decided where there is much noise, details where there is
  little.
* **Absorber**: rank, strength, rates, `patch_crop`. Which absorber a method has is said on Train Motion LoRA.
* **Appearance highway in training**: `highway`, which the papers use only when sampling.

Change one at a time and compare with the same seed.
""",
    "MotionLoRA_InvertClip": """
Runs DDIM sampling backwards: from the clip to the noise that the base would have made it from.

* **Editing**: invert with the clip's own caption; sample with the changed prompt, `noise_prior` 1, the same number of
  `ddim` steps and little guidance. The clip's layout and motion stay.
* **Noise prior**: invert with an empty prompt, sample with a motion LoRA and `noise_prior` 0.1 to 0.5. The new video
  has the clip's layout roughly, the LoRA brings the motion.

Other frame counts and sizes than the clip's are fine: the noise is stretched so that it stays noise. It belongs to its
base model and is refused on another one.
""",
    "MotionLoRA_TrainMotionLoRA": """
Learns the motion of the clips as a small file that can be put into other videos.

**Methods.** `auto` takes `many-looks` on the playground, where it was measured best, and `customize-a-video` on other
base models. `customize-a-video` for one clip, `motiondirector` for one or several, `separate-motion-appearance` with
little to learn in: it leaves most temporal weights alone. `many-looks`, this project's own, where the motion
stays with the clip's own subject: it redraws the clip under the captions in `looks` and learns from all of them, at
high noise only, so that its LoRA acts in the first steps of sampling; an absorber keeps the clip's own look out.
`motiondirector-image` learns a look from images
or frames: its result goes on a Motion LoRA Stack like any other, beside a motion. The rest are ablations. Everything
that a method is made of can be changed with **Advanced Training Settings**.

**Zero means default**: `steps`, `rank`, `alpha` and `learning_rate` at 0 take the values of the method on this base
model.

**Wait or background.** With `run` at *wait*, whatever depends on the LoRA follows in the same run; everything else
in the workflow goes on meanwhile. At *background* the node ends at once and the queue is free. What depends on the
LoRA is left out for now; when the training is done the same workflow is queued again by itself, unless
`continue_when_done` is off.

**Nothing is trained twice.** A training is known by its clips, captions, base model and settings. Run it again and
the finished file is loaded at once, also after a restart. A training that was stopped, cancelled with ComfyUI's
Cancel, or lost in a crash goes on from its last checkpoint. `retrain` trains again nevertheless.

**The panel** (the camera symbol in the sidebar) shows every training with its loss, speed and previews, and has the
buttons to pause, resume, stop and save, and cancel. The finished file is in `output/loras/motion`.

**Which checkpoint?** A LoRA that trains on is not always a better one: at some point the clip's look comes along. With
`validate_every` a few small videos are sampled on the way, always of the same prompts and start noises, and scored:
motion fidelity to the clip, leakage of its look, text alignment. The panel draws the curves and marks the best
checkpoint: of those whose leakage is at most 0.1 above the base's and whose text alignment is at least 0.9 times the
base's, the one of the highest motion fidelity, or the latest that is no more than 0.05 below it. `keep` says whether
that one or the last goes on; both files, the curve and a table stay in the job's folder (`best.safetensors`,
`last.safetensors`, `validation.png`, `validation.csv` below `user/motion_lora`). `early_stop` ends the training when
four validations in a row have brought nothing more. Each validation takes as long as sampling its videos: twelve on the
playground, elsewhere one for each of `validate_prompts`.
On the playground the scores are exact; a clip that is none of the playground's cannot be measured there, and is
refused where the best checkpoint or an early stop is asked for. On other models motion fidelity, by tracked points (it
needs the package `opencv-python-headless`), and leakage are proxies, and text alignment takes part only with a
`clip_model`; `lpips_weights` adds the consistency of neighbouring frames (lower is better), which decides nothing.

**Memory.** Too little? Switch `gradient_checkpointing` on, use fewer frames or smaller ones, or
`pause_while_generating` to give the memory back whenever another workflow runs.
""",
    "MotionLoRA_LoadMotionLoRA": """
Put files that others shared into `models/loras/motion` or `models/motion_lora` and press R. A LoRA fits base models
of the kind it was trained on; one that does not fit is refused before anything is sampled.
""",
    "MotionLoRA_SaveMotionLoRA": """
A finished training is saved in `output/loras/motion` by itself; this node is for another name or a smaller
precision. The file says how it was made (captions, base, settings), unless ComfyUI runs with `--disable-metadata`.
""",
    "MotionLoRA_MotionLoRAStack": """
A stack is a list of LoRAs with their strengths; the order changes nothing. A strength below 0 turns the learned
change round. Stacked LoRAs cost no time: they are merged into a private copy of the weights.

A layer's strength is `strength`, times `temporal_strength` or `spatial_strength`, times that of its block. Connect
**Strength Schedule** to let the LoRA act in a part of the sampling steps, **Frame Strength** to let it act in a part
of the video; what varies so is computed beside the weights and costs a little time.
""",
    "MotionLoRA_AppearanceLoRA": """
Image LoRAs for Stable Diffusion 2.1 fit the spatial layers of ModelScope and ZeroScope. The file is recognised by
its content and every layer is checked; a file for another model is refused with a sentence that says what it is.

A look is decided late, a motion early: with **Strength Schedule**, give the motion LoRA the first part of the sampling
steps and the look the rest.
""",
    "MotionLoRA_AppearanceHighway": """
In the stock network a skip connection carries what the motion LoRA did to the decoder, and with it some of the
clip's look. On the highway it starts one layer earlier, before the temporal attention. No training is needed:
switch it on and off and compare.
""",
    "MotionLoRA_LoadAnyLoRA": """
Understood are this project's own files, PEFT and diffusers (every spelling), kohya, and the lists without names that
MotionDirector and Separate Motion from Appearance write (`.pt`). Pickles are read without running anything in them.

Either all layers have their place, or the file is refused: "128 of 128 layers matched" stands in the node and in
`report`. LoRAs for Stable Diffusion 1.5, SDXL, AnimateDiff, Wan, LTX, Flux and textual inversions are recognised and
refused with a sentence that says what they are.

Connect the base model to have that said here and not when sampling.
""",
    "MotionLoRA_InspectLoRA": """
Look before you use: the node shows the format, how many layers of which block the file changes and how strongly
(`norm` is the size of the change of the weights), its rank, the captions and the base it was made on. Prompts in the
words of its captions work best.

The names in the table are those that `block_strengths` of Motion LoRA Stack takes.
""",
    "MotionLoRA_ConvertLoRA": """
Takes a LoRA from any node: Load LoRA (any format), Train Motion LoRA, Merge LoRAs, Resize LoRA. `kohya` and `peft`
are what other tools read; in the stored precision each change of a weight comes back bit for bit, and the file is
checked for that before it takes its name. A text-encoder part is not written.

The metadata goes in too, unless ComfyUI runs with `--disable-metadata`.
""",
    "MotionLoRA_MergeLoRAs": """
With `rank` 0 the result does exactly what both do on one stack; its rank is the sum of theirs. With a rank it is the
nearest LoRA of that rank, and `report` says how much of the change was kept. To use two LoRAs together there is no
need to merge them: chain two Motion LoRA Stacks.
""",
    "MotionLoRA_ResizeLoRA": """
A rank that was chosen too high costs space and nothing else. Each layer is replaced by the nearest one of a lower
rank; with `energy` below 1, layers that need less get less. `kept` near 1 means that nothing will be seen.
""",
    "MotionLoRA_StrengthSchedule": """
The factor that the LoRA's strength is multiplied by, from the first sampling step (0) to the last (1). The coarse
motion of a video is decided in the first steps, its look in the last ones: `end` 0.5 on a motion LoRA takes its motion
and less of its look (phased integration).

`points` draws any curve: `0:1, 0.3:1, 0.6:0` holds full strength for three tenths of the steps and is gone after six.
""",
    "MotionLoRA_FrameStrength": """
The factor that the motion LoRA's strength is multiplied by, from the first frame (0) to the last (1): let a motion set
in (`linear-in`), fade (`linear`), or hand over to another LoRA that has the opposite curve. It acts on temporal layers
only; frames still see each other in them, so the change is softer than the curve.
""",
    "MotionLoRA_SampleVideo": """
Zeros stand for the base model's own frames, size and rate. The start noise depends on the seed alone, so two of
these nodes with the same seed, one with a stack and one without, show what the LoRA does.

* **`noise`** (from Invert Clip) starts from a clip's own noise: `noise_prior` is its share.
* **`source`** edits a video: it is noised, and `edit_strength` is the share of the steps that are run on it. Connect
  the frames of Reference Clip or Load Video.

Without these two connected, `noise_prior` and `edit_strength` have no effect.
""",
    "MotionLoRA_DecodeVideo": """
For latents that were sampled with `decode` off, or changed in between. Latents travel unscaled, as everywhere in
ComfyUI.
""",
    "MotionLoRA_SideBySide": """
Videos of different sizes are brought to one size. Connect the clip's frames as `reference` to see all three.
""",
    "MotionLoRA_CompareLoRAs": """
Which LoRA, strength or checkpoint is best? Rows are the base model and the connected stacks, columns the prompts;
all videos of a column start from the same noise.

On the built-in playground model the scores are exact. On other models `motion_fidelity` (tracked points, needs the
package `opencv-python-headless`) and `appearance_leakage` (colours and texture) are proxies that need the
`reference` clip, `text_alignment` needs a `clip_model` and `consistency` that or `lpips_weights`. The lines below the
table say what each score is, which way is better, and why one is missing. A figure means something only beside the
base model's row: motion fidelity should be well above it, leakage hardly.

The table goes to any node that shows text, such as Preview as Text. `motion-lora compare` writes the same as files.
""",
    "MotionLoRA_ScoreVideo": """
Measures any video, also one that was not made here: connect a **video** (Load Video) or **images**. No base model is
needed. The `table` says of each score what it is and which way is better, and of each missing one why it is missing and
what would give it; show it with Preview as Text. The other outputs are the same figures, for calculating with. One that
cannot be had is NaN, which is neither above nor below any number.

| score | needs |
| --- | --- |
| `motion_fidelity` | `reference`, of as many frames as the video; the package `opencv-python-headless` |
| `appearance_leakage` | `reference`, and the base model's own video of the prompt as `neutral` |
| `text_alignment` | `prompt` and `clip_model` |
| `consistency` | `lpips_weights` (lower is better), or else `clip_model` (higher is better) |

CLIP models are folders in transformers' layout with `config.json`, the tokenizer's files and safetensors, in
`models/motion_lora_metrics/NAME` or `models/clip_vision/NAME`; a lone file of ComfyUI's CLIP Vision has no text half
and is not listed. LPIPS takes torchvision's ImageNet weights (`alexnet-*.pth`, `vgg16-*.pth` or `squeezenet1_1-*.pth`,
known by the name) in `models/motion_lora_metrics`, and the package `lpips`. Figures of different CLIP models, and of
different backbones, cannot be compared.

With `playground` on, the built-in model's probe reads motion fidelity, leakage, text alignment (a share, 0 to 1) and
consistency exactly, and needs nothing but `reference` and `prompt`. `motion-lora score` does the same for files, and
measures the diversity of several videos of one prompt.
""",
}

MAIN = {
    "nodeCategories": {
        "MotionLoRA": "MotionLoRA",
        "clips": "clips",
        "load": "load",
        "sample": "sample",
        "save": "save",
        "stack": "stack",
        "train": "train",
    }
}
COMMANDS = {"MotionLoRA_TogglePanel": {"label": "Show or hide the Motion LoRA trainings"}}


def texts(nodes: dict[str, Any]) -> dict[Path, str]:
    """Every file that is written, with its content; `nodes` are the node classes by id."""
    infos = {node_id: node.info() for node_id, node in sorted(nodes.items())}
    files = {ROOT / "web" / "docs" / f"{node_id}.md": _page(node_id, info) for node_id, info in infos.items()}
    english = ROOT / "locales" / "en"
    files[english / "nodeDefs.json"] = _json({node_id: _definition(info) for node_id, info in infos.items()})
    files[english / "main.json"] = _json(MAIN)
    files[english / "commands.json"] = _json(COMMANDS)
    return files


def snapshot(nodes: dict[str, Any]) -> dict[str, Any]:
    """What saved workflows rely on: ids, and in order the inputs and outputs with their types."""
    found = {}
    for node_id, node in sorted(nodes.items()):
        info = node.info()
        found[node_id] = {
            kind: [[name, entry[0]] for name, entry in info["input"].get(kind, {}).items()]
            for kind in ("required", "optional")
        }
        found[node_id]["output"] = [list(pair) for pair in zip(info["output_name"], info["output"], strict=True)]
    return found


def _inputs(info: dict[str, Any]) -> dict[str, list[Any]]:
    return {**info["input"]["required"], **info["input"].get("optional", {})}


def _page(node_id: str, info: dict[str, Any]) -> str:
    lines = [f"# {info['display_name']}", "", info["description"], "", INTRODUCTIONS[node_id].strip(), ""]
    lines += ["## Inputs", "", "| input | default | what it is |", "| --- | --- | --- |"]
    for name, (_, options) in _inputs(info).items():
        default = options.get("default", "")
        shown = "" if default == "" else f"`{default}`"
        lines.append(f"| `{name}` | {shown} | {options['tooltip']} |")
    lines += ["", "## Outputs", "", "| output | what it is |", "| --- | --- |"]
    for name, tooltip in zip(info["output_name"], info["output_tooltips"], strict=True):
        lines.append(f"| `{name}` | {tooltip} |")
    return "\n".join(lines) + "\n"


def _definition(info: dict[str, Any]) -> dict[str, Any]:
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": {name: {"name": name, "tooltip": o["tooltip"]} for name, (_, o) in _inputs(info).items()},
        "outputs": {
            str(index): {"name": name, "tooltip": tooltip}
            for index, (name, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
        },
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def main() -> int:
    """Write them."""
    from comfy_double import hosted

    with tempfile.TemporaryDirectory() as folder, hosted(Path(folder)) as host:
        written = {**texts(host.nodes), ROOT / "tests" / "object_info.json": _json(snapshot(host.nodes))}
        for path, text in written.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            sys.stdout.write(f"{path.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
