"""The measurement itself, on a CPU: that it runs, that its net says what it is told, and that it counts right.

What it finds on a GPU nobody can know here; that it will find it, and will not lose it, can be tried.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infra import gpu_bench, gpu_checks, gpu_stages
from infra.gpu_bench import Report
from infra.gpu_limits import Limits, admit_flops, encoder_flops, measure, step_bytes
from infra.gpu_scripted import BASE, CERTAIN, CHAINS, Script, ScriptedWhisper, plain_words
from infra.gpu_stages import ATTENTION, Bench, attention, by_sdpa, random_net
from model import whisper
from model.cache import Reach
from model.dimensions import OFFICIAL
from model.engine import Engine
from model.options import DecodeOptions
from model.tokenizer import Tokenizer
from model.transcript import Part
from model.whisper import Whisper

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
DIMS = replace(OFFICIAL["tiny"], n_audio_state=32, n_audio_head=2, n_audio_layer=1, n_text_state=32)
DIMS = replace(DIMS, n_text_head=2, n_text_layer=1)
TOKENIZER = Tokenizer.for_dimensions(DIMS)


@cache
def net() -> Whisper:
    return random_net(DIMS, torch.float32, CPU)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- one call -----------------------------------------------------------------------------------------------------


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "infra" / "gpu_bench.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)


@pytest.mark.timeout(600)
def test_one_call_measures_every_stage_and_keeps_every_figure(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    done = call("--device", "cpu", "--model", "tiny", "--seconds", "30", "--out", str(out))
    assert done.returncode == 0, done.stderr
    kept = json.loads(out.read_text())
    assert (kept["device"], kept["torch"]) == ("CPU", torch.__version__)
    assert done.stdout.splitlines()[0] == f"CPU, torch {torch.__version__}"
    assert len(done.stdout.splitlines()) == 1 + len(kept["rows"])
    stages = {row["stage"]: row for row in kept["rows"] if "stage" in row}
    expected = {"encode, a window", "admit, a window", "prompt, a window", "step", "rules", "engine"}
    assert stages.keys() - {"transformers"} == expected
    assert all(row["ms"] > 0 and row["model"] == "tiny" for row in stages.values())
    engine = stages["engine"]
    assert (engine["windows"], engine["occupancy"]) == (1, 0.5)  # one window in two slots
    assert engine["real_time"] == pytest.approx(30 / engine["ms"] * 1e3)
    checks = [row for row in kept["rows"] if "alike" in row]
    assert len(checks) == 2 and all(row["alike"] == row["of"] == 3 and row["tokens"] > 100 for row in checks)
    assert [row["largest_difference"] for row in kept["rows"] if "largest_difference" in row] == [0, 0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = call("--model", "tiny")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("give --device cpu, or run this where there is one.")


# --- the report ---------------------------------------------------------------------------------------------------


def report(path: Path | None = None, seconds: float = 60.0) -> Report:
    import time

    return Report(path, {"device": "none"}, time.monotonic() + seconds)


def test_figures_are_kept_as_they_come(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"check": "one"}
        assert json.loads(path.read_text()) == {"device": "none", "rows": [{"check": "one"}]}
        yield {"check": "two"}

    path = tmp_path / "rows.json"
    report(path).add(rows())
    assert len(json.loads(path.read_text())["rows"]) == 2


def test_nothing_is_begun_when_the_time_is_up() -> None:
    late = report(seconds=-1)
    late.add([{"check": "one"}])
    assert late.rows == []


def test_what_has_no_room_is_a_row_and_no_end() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        yield {}

    full = report()
    full.add(rows())
    full.add([{"check": "next"}])
    assert full.rows == [{"error": "CUDA out of memory."}, {"check": "next"}]


def test_a_line_says_what_was_measured_on_what() -> None:
    row = {"model": "tiny", "precision": "float16", "stage": "step", "ms": 1.5, "slots": 8, "share": 0.42}
    assert " ".join(gpu_bench.line(row).split()) == "tiny float16 step 1.500 ms 42% of the limit slots 8"
    assert gpu_bench.line({"limits": "float16", "TB/s": 4.3}) == "limits: float16  TB/s: 4.3"


def test_the_best_of_each_is_compared() -> None:
    full = report()
    facts = {"model": "tiny", "precision": "float16", "ms": 1.0}
    full.add([facts | {"stage": "engine", "real_time": speed} for speed in (900.0, 1000.0)])
    full.add([facts | {"stage": "transformers", "real_time": speed} for speed in (250.0, 200.0)])
    full.add([facts | {"precision": "bfloat16", "stage": "engine", "real_time": 5000.0}])
    gpu_bench.compare(full)
    assert full.rows[-1] == {"ratio to transformers": 4.0, "model": "tiny", "precision": "float16"}


# --- the script ---------------------------------------------------------------------------------------------------


def test_a_scripted_window_takes_the_tokens_it_was_given_and_nothing_objects() -> None:
    scripted = ScriptedWhisper(net(), TOKENIZER)
    engine = Engine(scripted, TOKENIZER, DecodeOptions(language="en"), slots=3)
    mel = torch.zeros(80, 9000).numpy()
    futures = [engine.submit(Part(str(number), mel, 9000)) for number in range(3)]
    engine.drain()
    for future in futures:
        transcript = future.result(timeout=0)
        assert (transcript.windows, transcript.windows_retried, transcript.windows_skipped) == (3, 0, 0)
        assert len(transcript.segments) == 6
        assert not any(segment.rules_fired for segment in transcript.segments)
    said = {future.result().tokens for future in futures}
    assert len(said) == 3, "all windows are equally long"
    assert engine.counters.tokens / engine.counters.windows == pytest.approx(100, abs=30)
    assert engine.counters.encoded_windows == engine.counters.windows == 9


def test_every_chain_ends_after_its_length() -> None:
    script = Script.write(TOKENIZER, DIMS, CPU)
    begun = {script.begins[index].item() for index in range(CHAINS)}
    assert len(begun) == CHAINS
    for begin, length in zip(script.begins.tolist(), script.lengths, strict=True):
        chain = [script.begin, begin]
        while chain[-1] != TOKENIZER.eot:
            chain.append(int(script.follows[chain[-1]]))
        assert len(chain) == length
        assert len(set(chain)) == len(chain), "a token twice: the chain would go round for ever"
    assert sum(script.lengths) / CHAINS == pytest.approx(100, abs=15)


def test_words_are_never_suppressed() -> None:
    words = plain_words(TOKENIZER)
    assert len(words) > CHAINS * 200
    assert not {*words} & {*TOKENIZER.suppressed((-1,)), *TOKENIZER.blank_tokens}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_id_travels_beside_any_hidden_state(dtype: torch.dtype) -> None:
    ids = torch.arange(51_866)
    digits = torch.stack((ids // BASE, ids % BASE)).to(dtype).long()
    assert torch.equal(digits[0] * BASE + digits[1], ids)


def test_only_the_scripted_token_is_certain_and_all_else_is_computed() -> None:
    scripted = ScriptedWhisper(net(), TOKENIZER)
    tokens, at = torch.tensor([[TOKENIZER.transcribe], [5000]]), torch.zeros(2, 1, dtype=torch.int64)
    mine, plain = scripted.new_cache(2), net().new_cache(2)
    logits = scripted.project(scripted.decode(tokens, at, mine, Reach(None, 1)))[:, 0].clone()
    real = net().project(net().decode(tokens, at, plain, Reach(None, 1)))[:, 0]
    following = [TOKENIZER.timestamp_begin, TOKENIZER.eot]
    assert logits.argmax(-1).tolist() == following
    assert logits[[0, 1], following].tolist() == [CERTAIN, CERTAIN]
    logits[[0, 1], following] = real[[0, 1], following]
    assert torch.equal(logits, real)
    assert torch.equal(mine.self_k, plain.self_k)


# --- counted on paper ---------------------------------------------------------------------------------------------


def test_the_encoder_of_large_takes_two_teraflop_a_window() -> None:
    assert encoder_flops(OFFICIAL["large-v3"]) == pytest.approx(2.3e12, rel=0.03)
    assert encoder_flops(OFFICIAL["large-v3-turbo"]) == encoder_flops(OFFICIAL["large-v3"])
    assert admit_flops(OFFICIAL["large-v3"]) == pytest.approx(8 * admit_flops(OFFICIAL["large-v3-turbo"]))


def test_a_slot_of_large_makes_a_step_read_246_megabytes() -> None:
    one, two = (step_bytes(OFFICIAL["large-v3"], torch.float16, slots, 0) for slots in (1, 2))
    assert two - one == pytest.approx(246e6, rel=0.01)


@pytest.mark.parametrize("model", ["tiny", "large-v3"])
def test_the_weights_of_a_step_are_those_of_the_decoder(model: str) -> None:
    """All of them but biases, norms, positions, and what makes keys and values of the audio."""
    with torch.device("meta"):
        decoder = Whisper(OFFICIAL[model]).decoder
    weights = [(name, tensor.numel()) for name, tensor in decoder.named_parameters() if tensor.dim() == 2]
    other = ("cross_attn.key.weight", "cross_attn.value.weight", "positional_embedding")
    count = sum(numbers for name, numbers in weights if not name.endswith(other))
    assert step_bytes(OFFICIAL[model], torch.float16, 0, 0) == 2 * count


def test_limits_are_measured() -> None:
    limits = measure(CPU, torch.float32)
    assert 1e8 < limits.flops < 1e14 and 1e7 < limits.bytes < 1e13


# --- the stages ---------------------------------------------------------------------------------------------------


def test_every_kind_of_attention_computes_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, count, 8, generator=generator) for count in (1, 20, 20))
    hidden = (torch.arange(20) > torch.tensor([[4], [19], [0]]))[:, None, None]
    for mask in (None, hidden):
        for kind in ATTENTION.values():
            torch.testing.assert_close(kind(q, k, v, mask), ATTENTION["as it is"](q, k, v, mask))


def test_attention_is_as_it_was_after_a_measurement_even_one_that_failed() -> None:
    before = whisper.attend
    with pytest.raises(RuntimeError, match="no room"), attention("sdpa"):
        assert whisper.attend is by_sdpa
        raise RuntimeError("no room")
    assert whisper.attend is before


@pytest.mark.parametrize("seconds", [1, 30, 3000, 6090])
def test_parts_come_to_the_audio_that_was_asked_for(seconds: float) -> None:
    parts = gpu_stages._parts(DIMS, seconds)
    assert sum(part.content_frames for part in parts) == max(30, seconds) * 100
    assert all(part.content_frames <= part.mel.shape[1] == 30_000 for part in parts)
    assert len({part.part_id for part in parts}) == len(parts)


def test_a_window_that_is_tried_again_is_no_measurement() -> None:
    """It would be timed with attempts that the script did not plan."""
    retried = SimpleNamespace(windows_retried=1)
    engine = SimpleNamespace(submit=lambda part: SimpleNamespace(result=lambda timeout: retried), drain=lambda: None)
    with pytest.raises(RuntimeError, match="the script breaks a rule"):
        gpu_stages._drain(engine, gpu_stages._parts(DIMS, 30))


def test_the_limits_bound_what_a_window_takes() -> None:
    """large-v3 on 790 TFLOP/s and 4.3 TB/s, in 128 slots: some ten milliseconds, thousands of times real time."""
    with torch.device("meta"):
        big = Whisper(OFFICIAL["large-v3"]).to(torch.float16)
    bench = Bench("large-v3", big, Limits(790e12, 4.3e12))
    assert 30 / gpu_stages.window_bound(bench, 128) == pytest.approx(3000, rel=0.05)


def test_a_random_net_is_finite_and_says_different_things() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        made = random_net(DIMS, dtype, CPU)
        assert all(bool(tensor.isfinite().all()) for tensor in made.state_dict().values())
        assert made.dtype == dtype and not any(weights.requires_grad for weights in made.parameters())
        heard = made.encode(torch.randn(2, 80, 3000))
        assert bool(heard.isfinite().all()) and not torch.equal(heard[0], heard[1])


def test_checks_notice_a_device_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure of a wrong net differs: the second that is loaded has one weight of each norm changed."""
    loaded = []

    def load(*arguments: Any) -> Whisper:
        made = random_net(gpu_checks.RANDOM, torch.float32, CPU, gpu_checks.RANDOM_SCALE)
        made.load_state_dict(weights.state)
        if loaded:
            made.encoder.ln_post.weight[0] += 5
        loaded.append(made)
        return made

    weights = gpu_checks.Weights.of(None, "")
    monkeypatch.setattr(gpu_checks, "load_net", load)
    monkeypatch.setattr(gpu_checks, "sounds", lambda dims: torch.randn(3, 80, 3000).numpy())
    rows = list(gpu_checks.checks(weights, CPU))
    assert [row["largest_difference"] > 0.1 for row in rows[:2]] == [True, True]
    assert rows[2]["alike"] < rows[2]["of"] == 3


def test_sounds_differ_and_are_log_mel() -> None:
    mel = torch.from_numpy(gpu_checks.sounds(DIMS))
    assert (mel.shape, mel.dtype) == ((3, 80, 3000), torch.float32)
    assert not torch.equal(mel[0], mel[1])
    assert -2 < float(mel.min()) < float(mel.max()) < 3


def test_a_net_of_half_precision_is_measured_in_it() -> None:
    bench = Bench("tiny", random_net(DIMS, torch.bfloat16, CPU), Limits(1e12, 1e12))
    (row,) = gpu_stages.choose(bench, 2)
    assert (row["model"], row["precision"], row["stage"], row["slots"]) == ("tiny", "bfloat16", "rules", 2)
