"""Several threads of one process: ComfyUI loads models and samples while a job of ours trains.

Libraries below change torch for the whole process while they build or load networks; nothing of ours may let them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from tiny import write_tiny_folder
from torch import nn
from training_samples import quick, sample_clip, small_pipeline

from motion_lora.base.pipeline import VideoPipeline
from motion_lora.base.text import token_ids
from motion_lora.base.tokens import initial_tokens, with_tokens
from motion_lora.core.errors import MotionLoRAError
from motion_lora.core.stack import AdapterStack, StackEntry
from motion_lora.sampling.loop import sample
from motion_lora.sampling.settings import SampleSettings
from motion_lora.training import train


def trained(pipeline: VideoPipeline) -> str:
    return train(pipeline, [sample_clip()], quick(absorber="none", steps=1)).lora.fingerprint()


class Thread(threading.Thread):
    """Repeats some work until it is stopped; `errors` keeps what went wrong."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work, self._over = work, threading.Event()
        self.rounds, self.errors = 0, []

    def run(self) -> None:
        while not self._over.is_set():
            try:
                self._work()
            except (RuntimeError, ValueError, TypeError, AssertionError, MotionLoRAError) as error:
                self.errors.append(repr(error))
            self.rounds += 1

    def __enter__(self) -> Thread:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()


def a_host_loads() -> None:
    module = nn.Linear(4, 4)
    assert module.weight.device.type == "cpu" and module.weight.abs().sum() > 0


def test_others_build_their_models_while_we_train_and_load(tmp_path: Path) -> None:
    folder, pipeline = write_tiny_folder(tmp_path / "tiny", levels=2), small_pipeline()
    methods, state = (nn.Module.register_parameter, nn.Module.register_buffer), torch.random.get_rng_state()
    trained(pipeline)
    VideoPipeline.load(folder, device="cpu")
    assert torch.equal(torch.random.get_rng_state(), state), "the host's random state is not ours to draw from"
    with Thread(a_host_loads) as host:
        for _ in range(2):
            trained(pipeline)
            VideoPipeline.load(folder, device="cpu")
            assert (nn.Module.register_parameter, nn.Module.register_buffer) == methods
    assert host.rounds > 10 and not host.errors


def test_trainings_samples_and_loads_at_once_are_what_they_are_alone(tmp_path: Path) -> None:
    folder, pipeline = write_tiny_folder(tmp_path / "tiny", levels=2), small_pipeline()
    alone = trained(pipeline)
    request = SampleSettings("a red circle", num_inference_steps=1, num_frames=2, height=16, width=16)
    lora = train(pipeline, [sample_clip()], quick(absorber="none", steps=1)).lora
    stack = AdapterStack((StackEntry(lora),))
    (still,) = sample(pipeline, request, stack=stack)
    prints: list[str] = []

    def one_sample() -> None:
        (video,) = sample(pipeline, request, stack=stack)
        assert torch.equal(video.frames, still.frames)

    def one_load() -> None:
        assert not any(tensor.is_meta for tensor in VideoPipeline.load(folder, device="cpu").unet.parameters())

    with (
        Thread(lambda: prints.append(trained(pipeline))) as other,
        Thread(one_sample) as sampler,
        Thread(one_load) as loader,
    ):
        prints += [trained(pipeline) for _ in range(3)]
    for thread in (other, sampler, loader):
        assert thread.rounds and not thread.errors
    assert set(prints) == {alone}


ROUNDS = 60  # of a shared tokenizer that each call sets up for itself the first one is wrong
PROMPTS = (
    "a red circle",
    "a red circle over snow " * 8,
    "a blue square over snow",
    "",
    "a red circle circling around over sand and snow",
)


def test_prompts_of_any_length_in_many_threads_are_what_they_are_alone() -> None:
    """The tokenizer is shared, and its library keeps what one call asked for on the shared object."""
    base = small_pipeline()
    tokens = initial_tokens(base, ["red circle"], 2)
    alone = {prompt: base.tokenize([prompt]) for prompt in PROMPTS}
    embedded = base.encode_prompt(PROMPTS[:2])
    counts = {prompt: len(token_ids(base.tokenizer, prompt)) for prompt in PROMPTS}

    def one_prompt(prompt: str) -> None:
        assert torch.equal(base.tokenize([prompt]), alone[prompt])
        assert len(token_ids(base.tokenizer, prompt)) == counts[prompt]

    def a_pair() -> None:
        assert torch.equal(base.encode_prompt(PROMPTS[:2]), embedded)

    def inverts() -> None:
        assert torch.equal(initial_tokens(base, ["red circle"], 2).rows, tokens.rows)
        taught, _ = with_tokens(base, tokens)
        assert taught.tokenize(["<look-1> over snow"]).shape == alone[""].shape

    works = [lambda prompt=prompt: one_prompt(prompt) for prompt in PROMPTS] + [a_pair, inverts]
    threads = [Thread(work) for work in works]
    with contextlib.ExitStack() as stack:
        for thread in threads:
            stack.enter_context(thread)
        for _ in range(ROUNDS):
            for prompt in PROMPTS:
                one_prompt(prompt)
    assert all(thread.rounds for thread in threads)
    assert [error for thread in threads for error in thread.errors] == []


def test_a_base_that_makes_room_leaves_the_text_encoder_of_another_training() -> None:
    base = small_pipeline()
    training = base.replica(unet=False, text_encoder=True)
    with base.offload_encoders():
        assert training._place_of(training.text_encoder).offloaders == 0
        assert base.replica()._place_of(base.text_encoder).offloaders == 1
        assert training._place_of(training.vae).offloaders == 1, "the VAE is the base's own"
