"""Folders of transcripts: what is a recording, what is spoken in it, and how long it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jobs.bench.recordings import Recording, read_folder, read_pcm, total_seconds
from jobs.samples import fetch_samples
from model.errors import SourceError

Say = Callable[..., Path]


def test_recordings_are_audio_with_a_transcript_beside_it(tmp_path: Path, say: Say) -> None:
    say(tmp_path / "b.wav", "Second  one.\nOf two lines.", seconds=3)
    say(tmp_path / "a.WAV", "First one.")
    say(tmp_path / "silent.wav", "").with_suffix(".txt").unlink()
    (tmp_path / "LICENCE.txt").write_text("Not a transcript.")
    first, second = read_folder(tmp_path)
    assert first == Recording("a", tmp_path / "a.WAV", 2.0, "First one.", spoken=None)
    assert (second.name, second.seconds, second.text) == ("b", 3.0, "Second one. Of two lines.")
    assert total_seconds([first, second]) == 5.0


def test_a_folder_called_by_a_code_says_what_is_spoken_below(tmp_path: Path, say: Say) -> None:
    say(tmp_path / "fr" / "digits" / "1.wav", "un")
    say(tmp_path / "other" / "1.wav", "one")
    assert {r.name: r.spoken for r in read_folder(tmp_path)} == {"fr/digits/1": "fr", "other/1": None}


def test_what_the_wave_module_cannot_read_is_measured_by_decoding(tmp_path: Path) -> None:
    for suffix in (".wav", ".txt"):
        shutil.copy(fetch_samples() / "en" / f"hello_world{suffix}", tmp_path)
    (recording,) = read_folder(tmp_path)
    assert recording.seconds == pytest.approx(len(read_pcm(recording.path)) / 16_000)
    assert 0.5 < recording.seconds < 10


def test_pcm_is_16_khz_whatever_the_file_is(tmp_path: Path, say: Say) -> None:
    pcm = read_pcm(say(tmp_path / "tone.wav", "", seconds=1.5))  # at 8 kHz
    assert pcm.dtype == np.int16 and len(pcm) == 24_000
    assert 7000 < pcm[1000:-1000].max() < 9000


def test_nothing_to_hear_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no audio with a transcript: put NAME.txt"):
        read_folder(tmp_path)
    (tmp_path / "a.wav").write_text("a letter")
    (tmp_path / "a.txt").write_text("a letter")
    with pytest.raises(SourceError, match=r"a\.wav cannot be heard"):
        read_folder(tmp_path)
