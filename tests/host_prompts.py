"""Prompts for a real ComfyUI's API, small enough for a test, and what becomes of their jobs."""

from __future__ import annotations

from typing import Any

from real_host import RealComfyUI, until

from motion_lora.playground.model import PLAYGROUND_FOLDER

PLAYGROUND = "playground (built-in)"
BASE = PLAYGROUND if (PLAYGROUND_FOLDER / "unet").is_dir() else "tiny"
TRAIN, SAMPLE = "MotionLoRA_TrainMotionLoRA", "MotionLoRA_SampleVideo"


def graph(seed: int, *, steps: int = 3, run: str = "wait", sampled: bool = True, **train: Any) -> dict[str, Any]:
    """Clip, training and, where asked for, a video with the LoRA."""
    nodes: dict[str, Any] = {
        "base": {
            "class_type": "MotionLoRA_LoadT2VModel",
            "inputs": {"model": BASE, "dtype": "auto", "download": False},
        },
        "clip": {
            "class_type": "MotionLoRA_PlaygroundClip",
            "inputs": {
                **{"shape": "circle", "colour": "red", "fill": "plain", "background": "sand"},
                **{"motion": "orbit", "num_frames": 4, "seed": 0},
            },
        },
        "train": {"class_type": TRAIN, "inputs": {**train_inputs(seed, steps=steps, run=run), **train}},
    }
    if sampled:
        nodes["stack"] = {
            "class_type": "MotionLoRA_MotionLoRAStack",
            "inputs": {"motion_lora": ["train", 0], "strength": 1.0},
        }
        nodes["sample"] = {"class_type": SAMPLE, "inputs": sample_inputs(stack=["stack", 0])}
        nodes["save"] = {
            "class_type": "SaveVideo",
            "inputs": {"video": ["sample", 1], "filename_prefix": "video/test", "format": "auto", "codec": "auto"},
        }
    return nodes


def train_inputs(seed: int, **changes: Any) -> dict[str, Any]:
    return {
        **{"base_model": ["base", 0], "clips": ["clip", 0]},
        **{"method": "temporal-only", "absorber": "default", "steps": 3, "rank": 0, "alpha": 0.0, "learning_rate": 0.0},
        **{"seed": seed, "run": "wait", "continue_when_done": True, "pause_while_generating": False, "retrain": False},
        **{"name": f"job {seed}", "preview_prompt": "", "preview_every": 100, "targets": "default"},
        **{"absorber_steps": 0, "token_steps": 0, "gradient_checkpointing": False, **changes},
    }


def sample_inputs(**changes: Any) -> dict[str, Any]:
    return {
        **{"base_model": ["base", 0], "prompt": "a blue square", "negative_prompt": "", "num_frames": 4},
        **{"width": 64, "height": 64, "num_inference_steps": 2, "guidance_scale": 9.0, "scheduler": "ddim"},
        **{"seed": 7, "fps": 0.0, "decode": True, **changes},
    }


def job_of(server: RealComfyUI, seed: int) -> dict[str, Any] | None:
    return next((job for job in server.jobs() if job["settings"]["seed"] == seed), None)


def begun(server: RealComfyUI, seed: int, steps: int = 1) -> dict[str, Any]:
    """The job of this seed once it has taken so many steps."""

    def found() -> dict[str, Any] | None:
        job = job_of(server, seed)
        return job if job and job["done_steps"] >= steps else None

    return until(found, 120, f"step {steps} of the job with seed {seed}")


def in_state(server: RealComfyUI, seed: int, *states: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        job = job_of(server, seed)
        return job if job and job["state"] in states else None

    return until(found, 120, f"the job with seed {seed} to be {' or '.join(states)}")


def status_of(record: dict[str, Any]) -> str:
    return record["status"]["status_str"]
