"""One job, decided before it starts: what every stage on every machine is told, small enough to send anywhere.

It holds no credentials, no weights and no open connections; each stage makes its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from model.prompts import hotword_tokens
from model.tokenizer import Tokenizer
from pipeline.config import Config
from pipeline.placement import Placement
from pipeline.weights import load_model


@dataclass(frozen=True)
class Model:
    """The weights a job was planned for: every machine must find the same."""

    name: str
    sha256: str
    n_mels: int

    @classmethod
    def of(cls, config: Config) -> Model:
        """The configured model, and a check that it can do what is asked of it.

        Raises: `ModelError` when the weights cannot be loaded; `UsageError` when they lack the language or the task,
        a token to suppress, or the room for the hotwords.
        """
        checkpoint = load_model(config.model)
        tokenizer = Tokenizer.for_dimensions(checkpoint.dims)
        tokenizer.sot_sequence(config.decode.language or "en", config.decode.task)
        tokenizer.suppressed(config.decode.suppress_tokens)
        hotword_tokens(config.decode.hotwords, tokenizer, checkpoint.dims)
        # Workers have other working directories.
        name = os.path.abspath(config.model) if os.path.exists(config.model) else config.model
        return cls(name, checkpoint.sha256, checkpoint.dims.n_mels)


@dataclass(frozen=True)
class Job:
    """What the stages of one run share."""

    config: Config
    model: Model
    place: Placement
    destination: str

    @property
    def generation(self) -> str:
        return self.config.generation(self.model.sha256)
