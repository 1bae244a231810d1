"""The forward process against diffusers' own, and its weights by hand."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from tiny import SCHEDULER_CONFIG, tiny_latents

from motion_lora.base.noise import NoiseSchedule, clip_noise, timestep_range
from motion_lora.core.errors import ModelError


def schedule(prediction_type: str = "epsilon") -> NoiseSchedule:
    return NoiseSchedule({**SCHEDULER_CONFIG, "prediction_type": prediction_type})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_noise_and_target_are_those_of_diffusers(prediction_type):
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    ours = schedule(prediction_type)
    latents, noise = tiny_latents(0, batch=3), tiny_latents(1, batch=3)
    timesteps = torch.tensor([0, 421, 999])
    assert ours.num_train_timesteps == 1000
    assert torch.allclose(ours.add_noise(latents, noise, timesteps), theirs.add_noise(latents, noise, timesteps))
    expected = {"epsilon": noise, "sample": latents, "v_prediction": theirs.get_velocity(latents, noise, timesteps)}
    assert torch.allclose(ours.target(latents, noise, timesteps), expected[prediction_type])


def test_signal_to_noise_and_its_weights_by_hand():
    # one beta of 0.2: the signal's share is 0.8, the noise's 0.2, the ratio 4
    config = {"num_train_timesteps": 1, "trained_betas": [0.2]}
    timestep = torch.tensor([0])
    for prediction_type, expected in (("epsilon", 3 / 4), ("v_prediction", 3 / 5), ("sample", 3.0)):
        one = NoiseSchedule({**config, "prediction_type": prediction_type})
        assert float(one.snr(timestep)) == pytest.approx(4.0)
        assert float(one.min_snr_weights(timestep, 3.0)) == pytest.approx(expected)
    assert float(NoiseSchedule(config).min_snr_weights(timestep, 5.0)) == pytest.approx(1.0)


def test_a_last_step_without_signal_has_a_weight():
    ours = NoiseSchedule({**SCHEDULER_CONFIG, "rescale_betas_zero_snr": True})
    last = torch.tensor([999])
    assert float(ours.snr(last)) < 1e-6
    assert float(ours.min_snr_weights(last, 5.0)) == pytest.approx(1.0)


def test_timesteps_stay_in_their_range():
    ours = schedule()
    every = ours.sample_timesteps(4000, generator())
    assert every.dtype is torch.int64 and int(every.min()) < 10 and int(every.max()) > 989
    early = ours.sample_timesteps(4000, generator(), low=0.6, high=0.8)
    assert (int(early.min()), int(early.max())) == (600, 799)
    assert torch.equal(early, ours.sample_timesteps(4000, generator(), low=0.6, high=0.8))


def test_a_narrow_range_is_never_empty():
    assert timestep_range(1000, 0.0, 1.0) == (0, 1000)
    assert timestep_range(1000, 0.9995, 1.0) == (999, 1000)
    assert timestep_range(10, 0.11, 0.12) == (1, 2)


def test_offset_noise_is_one_number_per_channel_and_frame():
    plain, offset = clip_noise((2, 3, 4, 8, 8), generator()), clip_noise((2, 3, 4, 8, 8), generator(), 0.5)
    shift = offset - plain
    assert torch.allclose(shift, shift[..., :1, :1].expand_as(shift), atol=1e-6)
    assert len(set(shift[..., 0, 0].flatten().tolist())) == 24
    assert float(shift.std()) == pytest.approx(0.5, rel=0.4)


def test_unknown_prediction_type_is_refused():
    with pytest.raises(ModelError, match=r"'flow_prediction'; training knows epsilon"):
        schedule("flow_prediction")


def test_entries_of_other_schedulers_are_passed_over():
    config = {**SCHEDULER_CONFIG, "_class_name": "PNDMScheduler", "skip_prk_steps": True}
    assert torch.equal(NoiseSchedule(config).signal, schedule().signal)
