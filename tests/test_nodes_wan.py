"""Load Wan Model: files by name, the clip's captions with the embeddings that ComfyUI's CLIP made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_double import hosted
from tiny import tiny_pipeline
from training_samples import sample_clip


def test_a_base_is_made_of_comfyuis_files_and_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, asked = tiny_pipeline(levels=2, backbone="wan"), {}
    for folder, name in (("diffusion_models", "wan2.1_t2v_1.3B_fp16"), ("vae", "wan_2.1_vae")):
        (tmp_path / "models" / folder).mkdir(parents=True)
        (tmp_path / "models" / folder / f"{name}.safetensors").write_bytes(b"x")

    def from_files(network: Path, vae: Path, texts: Any, **more: Any) -> Any:
        asked.update(network=network, vae=vae, **more)
        return replace(full, text_encoder=None, tokenizer=None, texts=texts)

    clip = sample_clip(num_frames=5)
    said = [[[full.encode_prompt([text]), {}]] for text in (clip.caption, clip.appearance_caption, "")]
    with hosted(tmp_path) as host:
        node = host.nodes["MotionLoRA_LoadWanModel"]
        pipeline = host.library("base.pipeline").VideoPipeline
        monkeypatch.setattr(pipeline, "from_files", from_files)
        made = node.execute(
            "wan2.1_t2v_1.3B_fp16.safetensors", "wan_2.1_vae.safetensors", (clip,), *said, "fp32", 5.0
        ).args[0]
    assert asked["network"].name == "wan2.1_t2v_1.3B_fp16.safetensors" and asked["vae"].parent.name == "vae"
    assert asked["flow_shift"] == 5.0
    text = made.read_prompts([clip.caption, ""]).tensors["encoder_hidden_states"]
    assert torch.equal(text, full.encode_prompt([clip.caption, ""]))
