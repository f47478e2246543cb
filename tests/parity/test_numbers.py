"""Log-mel, encoder output, first-step logits and language probabilities equal openai-whisper's, number by number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.cache import Reach
from model.dimensions import WINDOW_FRAMES, WINDOW_SAMPLES
from model.features import log_mel

pytestmark = [pytest.mark.parity, pytest.mark.timeout(300)]

MEL_MEAN, MEL_MOST = 1e-5, 1e-3
TOLERANCE = 1e-3  # of encoder output and logits
HEARD = ("ja/pangrama", "long", "noise", "silence")


@pytest.mark.parametrize("n_mels", [80, 128])
def test_log_mel(n_mels, audio) -> None:
    whisper_audio = pytest.importorskip("whisper.audio", reason="the extra `parity` is not installed")
    for name, samples in audio.items():
        theirs = whisper_audio.log_mel_spectrogram(samples, n_mels, padding=WINDOW_SAMPLES).numpy()
        ours = log_mel(samples, n_mels)
        difference = np.abs(ours - theirs[:, : ours.shape[1]])
        assert difference.mean() <= MEL_MEAN, name
        assert difference.max() <= MEL_MOST, name


@pytest.mark.parametrize("model", ["base", "tiny.en"])
def test_encoder_and_first_logits(model, sides, audio) -> None:
    both = sides(model)
    net, reference = both.ours.net, both.reference
    parts = [log_mel(audio[name], net.dims.n_mels)[:, :WINDOW_FRAMES] for name in HEARD]
    mel = torch.from_numpy(np.stack(parts))
    ours, theirs = net.encode(mel), torch.cat([reference.encoder(window[None]) for window in mel])
    assert (ours - theirs).abs().max() <= TOLERANCE

    language = "fr" if net.dims.is_multilingual else None
    prompt = torch.tensor([both.ours.tokenizer.sot_sequence(language, "transcribe")] * len(mel))
    rows, cache = torch.arange(len(mel)), net.new_cache(len(mel))
    net.admit(ours, cache, rows)
    positions = torch.arange(prompt.shape[1]).expand_as(prompt)
    logits = net.project(net.decode(prompt, positions, cache, Reach(rows, prompt.shape[1])))
    assert (logits - reference.logits(prompt, theirs)).abs().max() <= TOLERANCE
