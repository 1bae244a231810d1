"""The browser side without a browser: syntax, imports, and the functions that need no page, run by Node.js."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

WEB = Path(__file__).resolve().parents[1] / "web"
SCRIPTS = sorted(WEB.rglob("*.js"))
NODE = shutil.which("node")

needs_node = pytest.mark.skipif(NODE is None, reason="Node.js is not installed")


def run(code: str, tmp_path: Path) -> object:
    """What an expression of the web modules gives, as JSON."""
    shutil.copytree(WEB / "lib", tmp_path / "lib")
    # Node takes .js files for modules only where a package says so; a page takes them for what they are asked as.
    (tmp_path / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    script = tmp_path / "run.js"
    script.write_text(code.replace("LIB", "./lib") + "\nconsole.log(JSON.stringify(result))\n", encoding="utf-8")
    done = subprocess.run([str(NODE), str(script)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_parses(script: Path, tmp_path: Path) -> None:
    module = tmp_path / f"{script.stem}.mjs"
    module.write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    done = subprocess.run([str(NODE), "--check", str(module)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_only_the_two_public_scripts_of_comfyui_are_imported() -> None:
    imported = {
        target for path in SCRIPTS for target in re.findall(r"from '([^']+)'", path.read_text(encoding="utf-8"))
    }
    outside = {target for target in imported if not target.startswith("./")}
    assert outside == {"../../scripts/api.js", "../../scripts/app.js"}


def test_nothing_is_drawn_on_the_canvas_and_no_prototype_is_patched() -> None:
    forbidden = (
        "onDrawForeground",
        "onDrawBackground",
        ".prototype",
        "innerHTML",
        "getCanvasMenuOptions",
        "ComfyWidgets",
        "$el",
    )
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        assert not [word for word in forbidden if word in text], path.name


def test_helper_scripts_do_nothing_when_imported() -> None:
    """ComfyUI imports every .js file of a pack; only the entry may act."""
    for path in (WEB / "lib").glob("*.js"):
        for line in path.read_text(encoding="utf-8").splitlines():
            starts = (
                "import ",
                "export ",
                "const ",
                "class ",
                "function ",
                "async function ",
                "/**",
                " *",
                "//",
                "}",
                ")",
                "]",
            )
            assert not line or line.startswith((" ", *starts)), f"{path.name}: {line}"


def test_colours_come_from_the_theme() -> None:
    css = (WEB / "motion_lora.css").read_text(encoding="utf-8")
    rules = re.sub(r"--mlora-[a-z]+: [^;]+;", "", css)
    assert set(re.findall(r"#[0-9a-fA-F]{3,8}\b", rules)) <= {"#000"}, "only the letterbox of a video is black"


@needs_node
def test_points_are_joined_and_cut_at_a_checkpoint(tmp_path: Path) -> None:
    code = """
    import { joined } from 'LIB/jobs.js'
    const known = [['a', 1, 0.5], ['a', 2, 0.4], ['b', 1, 0.3], ['b', 2, 0.2], ['b', 3, 0.1]]
    const result = [joined(known, [['b', 4, 0.0]]).length, joined(known, [['b', 2, 0.9], ['b', 3, 0.8]])]
    """
    longer, resumed = run(code, tmp_path)
    assert longer == 6
    assert resumed == [["a", 1, 0.5], ["a", 2, 0.4], ["b", 1, 0.3], ["b", 2, 0.9], ["b", 3, 0.8]]


@needs_node
def test_stages_follow_each_other_in_the_chart(tmp_path: Path) -> None:
    code = """
    import { layOut, smooth } from 'LIB/chart.js'
    const { placed, borders } = layOut([['a', 1, 1], ['a', 2, 1], ['a', 3, NaN], ['b', 1, 5], ['b', 2, 5]])
    const mean = smooth(placed).map((p) => Math.round(p.loss * 1000) / 1000)
    const result = { x: placed.map((p) => p.x), borders, mean }
    """
    found = run(code, tmp_path)
    assert found == {"x": [1, 2, 3, 4], "borders": [2], "mean": [1, 1, 5, 5]}


VALIDATION = {
    "keep": "last",
    "base": {"motion_fidelity": 0.2, "text_alignment": 30.0},
    "points": [
        {"step": 50, "scores": {"motion_fidelity": 0.5, "appearance_leakage": 0.1, "text_alignment": 27.0}},
        {"step": 100, "scores": {"motion_fidelity": 0.4, "text_alignment": 15.0}},
    ],
    "best": {"step": 50, "admissible": True, "reason": "motion fidelity 0.500 at step 50"},
}


@needs_node
def test_validation_curves_begin_at_the_base(tmp_path: Path) -> None:
    code = f"""
    import {{ bestText, curvesOf, tableOf }} from 'LIB/chart.js'
    const told = {json.dumps(VALIDATION)}
    const result = [curvesOf(told), tableOf(told), bestText(told), bestText({{ ...told, keep: 'best' }})]
    """
    curves, table, last, best = run(code, tmp_path)
    assert curves == {
        "motion_fidelity": [[0, 0.2], [50, 0.5], [100, 0.4]],
        "appearance_leakage": [[50, 0.1]],
        "text_alignment": [[0, 1], [50, 0.9], [100, 0.5]],
    }
    assert table["head"] == ["step", "motion fidelity", "leakage", "text alignment"]
    assert table["rows"] == [
        ["base", "0.20", "", "30.00"],
        ["50, best", "0.50", "0.10", "27.00"],
        ["100", "0.40", "", "15.00"],
    ]
    assert last == "best (the last is kept): motion fidelity 0.500 at step 50"
    assert best == "best: motion fidelity 0.500 at step 50"


@needs_node
def test_validations_stay_where_a_message_has_none(tmp_path: Path) -> None:
    code = """
    import { Jobs } from 'LIB/jobs.js'
    const jobs = new Jobs({})
    jobs.apply({ jobs: [{ id: 'a', state: 'running', validation: { points: [1] } }] })
    jobs.apply({ jobs: [{ id: 'a', state: 'running' }] })
    const kept = jobs.byId.get('a').validation
    jobs.apply({ jobs: [{ id: 'a', state: 'cancelled', validation: {} }] })
    const result = [kept, jobs.byId.get('a').validation]
    """
    assert run(code, tmp_path) == [{"points": [1]}, {}]


@needs_node
@pytest.mark.parametrize(
    ("job", "labels"),
    [
        ({"state": "running", "done_steps": 0}, ["Pause", "Cancel"]),
        ({"state": "running", "done_steps": 3}, ["Pause", "Stop and save", "Cancel"]),
        ({"state": "running", "done_steps": 3, "command": "pause"}, ["Resume", "Stop and save", "Cancel"]),
        ({"state": "paused", "done_steps": 3}, ["Resume", "Save as it is", "Delete"]),
        ({"state": "failed", "done_steps": 0}, ["Retry", "Delete"]),
        ({"state": "cancelled", "done_steps": 0}, ["Retry", "Delete"]),
        ({"state": "done", "done_steps": 9}, ["Add to graph", "Delete"]),
        ({"state": "stopped", "done_steps": 9}, ["Add to graph", "Go on", "Delete"]),
    ],
    ids=lambda value: value["state"] if isinstance(value, dict) else "",
)
def test_buttons_fit_the_state(tmp_path: Path, job: dict, labels: list[str]) -> None:
    code = f"""
    import {{ actionsFor }} from 'LIB/card.js'
    const result = actionsFor({json.dumps(job)}).map(([, label]) => label)
    """
    assert run(code, tmp_path) == labels


@needs_node
def test_times_and_speeds_read_well(tmp_path: Path) -> None:
    code = """
    import { duration, speed } from 'LIB/dom.js'
    const result = [duration(75), duration(3700), duration(NaN), speed(0.25), speed(12.34), speed(null)]
    """
    assert run(code, tmp_path) == ["1:15", "1:01:40", "", "4.0 steps/s", "12.3 s/step", ""]


@needs_node
def test_a_plan_asks_by_what_is_connected(tmp_path: Path) -> None:
    code = """
    import { question } from 'LIB/plan.js'
    const widget = (name, value, more = {}) => ({ name, value, ...more })
    const made = (type, widgets, inputs = {}) => ({
      type,
      widgets,
      inputs: Object.keys(inputs).map((name) => ({ name })),
      getInputNode: (slot) => Object.values(inputs)[slot]
    })
    const base = made('MotionLoRA_LoadT2VModel', [widget('model', 'tiny'), widget('dtype', 'fp32')])
    const one = made('MotionLoRA_PlaygroundClip', [widget('num_frames', 8)])
    const sizes = [widget('num_frames', 16), widget('width', 256), widget('height', 128)]
    const two = made('MotionLoRA_ReferenceClip', sizes)
    const both = made('MotionLoRA_CombineClips', [], { clips_1: one, clips_2: two })
    const shown = [widget('method', 'auto'), widget('seed', 5), widget('motion_lora_job', '', { serialize: false })]
    const inputs = { base_model: base, clips: both, appearance_absorber: null }
    const train = made('MotionLoRA_TrainMotionLoRA', shown, inputs)
    const result = [question(train), question(made('MotionLoRA_SampleVideo', [], { base_model: null }))]
    """
    asked, nothing = run(code, tmp_path)
    assert asked == {
        **{"kind": "training", "model": "tiny", "dtype": "fp32", "widgets": {"method": "auto"}},
        **{"clips": [[8, 64, 64], [16, 128, 256]], "given": False},
    }
    assert nothing is None


@needs_node
def test_a_plan_looks_out_of_a_subgraph(tmp_path: Path) -> None:
    """Inside, base and clips come from the subgraph's own inputs; what is connected there is outside."""
    code = """
    import { question } from 'LIB/plan.js'
    const base = { type: 'MotionLoRA_LoadT2VModel', widgets: [{ name: 'model', value: 'tiny' }] }
    const inner = {}
    const owner = { type: 'some id', subgraph: inner, inputs: [{ name: 'video' }, { name: 'base' }] }
    owner.getInputNode = (slot) => (slot === 1 ? base : null)
    Object.assign(inner, { rootGraph: { _nodes: [owner], subgraphs: new Map([['x', inner]]) }, _nodes: [] })
    const train = { type: 'MotionLoRA_TrainMotionLoRA', widgets: [], graph: inner, inputs: [{ name: 'base_model' }] }
    train.getInputLink = () => ({ origin_id: -10, origin_slot: 1 })
    train.getInputNode = () => null
    const result = [question(train).model, question({ ...train, graph: {} })]
    """
    assert run(code, tmp_path) == ["tiny", None]


@needs_node
def test_a_job_of_another_server_is_asked_for(tmp_path: Path) -> None:
    """It sends this page no messages: after a silence its state is fetched, and only while something is at work."""
    code = """
    import { Jobs } from 'LIB/jobs.js'
    let asked = 0
    const answers = [{ id: 'a', state: 'running' }, { id: 'a', state: 'done' }]
    const api = { fetchApi: async () => ({ ok: true, json: async () => ({ jobs: [answers[asked++]] }) }) }
    const jobs = new Jobs(api)
    await jobs.fetch()
    await jobs.lookAgain()
    const soon = asked
    await jobs.lookAgain(Date.now() + 11000)
    await jobs.lookAgain(Date.now() + 30000)
    const result = [soon, asked, jobs.byId.get('a').state]
    """
    assert run(code, tmp_path) == [1, 2, "done"]


@needs_node
def test_a_comparison_is_one_prompt_of_base_and_lora(tmp_path: Path) -> None:
    code = """
    import { comparison } from 'LIB/comparison.js'
    const result = comparison({ name: 'orbit', base: 'tiny', published: 'motion/orbit.safetensors' }, 'a ring')
    """
    prompt = run(code, tmp_path)
    schemas = json.loads((WEB.parent / "tests/object_info.json").read_text(encoding="utf-8"))
    for node in prompt.values():
        if node["class_type"].startswith("MotionLoRA_"):
            required = {name for name, _ in schemas[node["class_type"]]["required"]}
            known = required | {name for name, _ in schemas[node["class_type"]]["optional"]}
            assert required <= set(node["inputs"]) <= known, node["class_type"]
    plain, moved = prompt["motion_lora_plain"]["inputs"], prompt["motion_lora_moved"]["inputs"]
    assert {**plain, "stack": ["motion_lora_stack", 0]} == moved and plain["prompt"] == "a ring"
    assert prompt["motion_lora_file"]["inputs"] == {"lora_name": "motion/orbit.safetensors"}
