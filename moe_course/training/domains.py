"""Text of several kinds that every machine with this course has, without a download: prose, Python, C++ and JSON.

domains = text_domains()
corpus = encode_domains(domains, ByteTokenizer())
for batch in corpus.batches(context=128, batch_size=8, steps=1000, seed=0): ...
losses = evaluate_domains(model, corpus.held_out_rows(context=128))
"""

import sysconfig
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional as F

from moe_course.training.tokenizer import Tokenizer

FILE_LIMIT = 32_000  # characters taken of one file, so that no domain is the style of three large files
CPP_HEADERS = ["c10/**/*.h", "torch/csrc/api/**/*.h"]  # written by people; those of ATen are mostly generated
HELD_OUT = 0.12  # share of the characters, at most


@dataclass(frozen=True)
class Domain:
    """One kind of text, split by file: no file is in both parts.

    Attributes:
        source: where the text comes from, in words.
        train: the training files, one after another.
        held_out: the files that no model is trained on.
    """

    source: str
    train: str
    held_out: str


def text_domains(characters: int = 500_000) -> dict[str, Domain]:
    """Four kinds of text: "prose", "python", "c++" and "json".

    Versions of Python, torch and JupyterLab differ a little in these files, and so does what is learnt from them.

    Args:
        characters: take at most about so many of each domain. JSON has some 180 000 in all, prose 410 000.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    headers = _package("torch") / "include"
    schemas = _package("jupyterlab") / "schemas"
    return {
        "prose": _domain("the language reference that comes with Python", _topics(), characters),
        "python": _domain("Python's standard library", _files(library, ["*.py"]), characters),
        "c++": _domain("the C++ headers that come with PyTorch", _files(headers, CPP_HEADERS), characters),
        "json": _domain("JupyterLab's settings, menus and shortcuts", _files(schemas, ["**/*.json"]), characters),
    }


@dataclass(frozen=True)
class Corpus:
    """Domains as token ids.

    Attributes:
        train: ids of each domain's training text, (N,).
        held_out: ids of each domain's held-out text.
    """

    train: dict[str, Int64[Tensor, " N"]]
    held_out: dict[str, Int64[Tensor, " N"]]

    def batches(
        self, context: int, batch_size: int, steps: int, seed: int
    ) -> Iterator[Int64[Tensor, "batch_size context_and_next"]]:
        """Yield `steps` batches of context + 1 tokens from random places, every domain equally often on average.

        The same for the same seed, whatever trains on them.
        """
        generator = torch.Generator().manual_seed(seed)
        texts = [ids.unfold(0, context + 1, 1) for ids in self.train.values()]
        for _ in range(steps):
            chosen = torch.randint(len(texts), (batch_size,), generator=generator).tolist()
            starts = torch.rand(batch_size, dtype=torch.float64, generator=generator).tolist()
            rows = [texts[i][int(start * len(texts[i]))] for i, start in zip(chosen, starts, strict=True)]
            yield torch.stack(rows)

    def held_out_rows(self, context: int, rows: int = 16) -> dict[str, Int64[Tensor, "rows context_and_next"]]:
        """For each domain, sequences of context + 1 tokens at equal distances in its held-out text."""
        result = {}
        for name, ids in self.held_out.items():
            windows = ids.unfold(0, context + 1, 1)
            result[name] = windows[torch.linspace(0, len(windows) - 1, rows).long()]
        return result


def encode_domains(domains: Mapping[str, Domain], tokenizer: Tokenizer) -> Corpus:
    """Turn domains into token ids."""
    return Corpus(
        {name: tokenizer.encode(domain.train) for name, domain in domains.items()},
        {name: tokenizer.encode(domain.held_out) for name, domain in domains.items()},
    )


@torch.no_grad()
def evaluate_domains(model: nn.Module, rows: Mapping[str, Int64[Tensor, "rows context_and_next"]]) -> dict[str, float]:
    """The cross-entropy of each domain, in nats per token; the model runs in evaluation mode.

    Args:
        model: a `MoETransformer`, or any module that returns `.logits` as it does.
        rows: sequences of each domain, such as `Corpus.held_out_rows` makes them.
    """
    was_training = model.training
    model.eval()
    losses = {}
    for name, ids in rows.items():
        logits = model(ids[:, :-1]).logits
        losses[name] = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()).item()
    model.train(was_training)
    return losses


def _domain(source: str, files: Mapping[str, str], characters: int) -> Domain:
    """Split files into two texts, in an order that mixes them and is the same on every machine."""
    names = sorted(files, key=lambda name: (zlib.crc32(name.encode()), name))
    train: list[str] = []
    held_out: list[str] = []
    total = kept_apart = 0
    for name in names:
        if total >= characters:
            break
        text = files[name][:FILE_LIMIT]
        total += len(text)
        if kept_apart + len(text) <= total * HELD_OUT:
            held_out.append(text)
            kept_apart += len(text)
        else:
            train.append(text)
    return Domain(source, "\n\n".join(train), "\n\n".join(held_out))


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics

    return topics


def _files(folder: Path, patterns: list[str]) -> dict[str, str]:
    """Text files below a folder, by path."""
    paths = [path for pattern in patterns for path in folder.glob(pattern)]
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8", errors="replace") for path in paths}


def _package(name: str) -> Path:
    """Where a package is installed; it is not imported."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{name} is not installed, whose files are part of the text; run `make setup`")
    return Path(spec.origin).parent
