"""Exercise 06.tile_map: cut each expert's rows into tiles, and say which expert owns each tile."""

import torch
from torch import Generator, Tensor

from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, ceil_div

Tiles = tuple[Tensor, Tensor]


def tile_map(tokens_per_expert: Tensor, block: int) -> Tiles:
    """Tiles of up to `block` rows, none with rows of two experts: (tile_experts, tile_rows), one entry a tile each."""
    return _map(tokens_per_expert, (tokens_per_expert + block - 1) // block, block)


def _map(tokens_per_expert: Tensor, tiles: Tensor, block: int) -> Tiles:
    """The map for a given number of tiles of each expert."""
    tile_experts = torch.arange(len(tiles)).repeat_interleave(tiles)
    first_tile, first_row = tiles.cumsum(0) - tiles, tokens_per_expert.cumsum(0) - tokens_per_expert
    number = torch.arange(len(tile_experts)) - first_tile[tile_experts]  # of the tile among its expert's
    return tile_experts, first_row[tile_experts] + number * block


def _by_loops(tokens_per_expert: Tensor, block: int) -> Tiles:
    experts, rows, begin = [], [], 0
    for expert, count in enumerate(tokens_per_expert.tolist()):
        for row in range(begin, begin + count, block):
            experts.append(expert)
            rows.append(row)
        begin += count
    return torch.tensor(experts, dtype=torch.int64), torch.tensor(rows, dtype=torch.int64)


def _row_by_row(tokens_per_expert: Tensor, block: int) -> Tiles:
    """Every row knows its expert and its place there; each block-th one begins a tile."""
    experts = torch.arange(len(tokens_per_expert)).repeat_interleave(tokens_per_expert)
    place = torch.arange(len(experts)) - (tokens_per_expert.cumsum(0) - tokens_per_expert)[experts]
    rows = (place % block == 0).nonzero().flatten()
    return experts[rows], rows


def _in_order(output: Tiles) -> Tiles:
    """Sorted by row, for tiles may come in any order."""
    order = (output[1] * 10_000 + output[0]).argsort(stable=True)
    return output[0][order], output[1][order]


def _counts(*numbers: int, block: int) -> Make:
    return lambda generator: {"tokens_per_expert": torch.tensor(numbers), "block": block}


def _random(num_experts: int, block: int) -> Make:
    def make(generator: Generator) -> Inputs:
        return {"tokens_per_expert": torch.randint(0, 40, (num_experts,), generator=generator), "block": block}

    return make


def _ends(tokens_per_expert: Tensor, block: int) -> Tiles:
    experts, rows = tile_map(tokens_per_expert, block)
    return experts, rows + tokens_per_expert[experts]


def _over_boundaries(tokens_per_expert: Tensor, block: int) -> Tiles:
    experts = torch.arange(len(tokens_per_expert)).repeat_interleave(tokens_per_expert)
    rows = torch.arange(0, len(experts), block)
    return experts[rows], rows


def _idle_skipped(tokens_per_expert: Tensor, block: int) -> Tiles:
    return tile_map(tokens_per_expert[tokens_per_expert > 0], block)


def _padded_rows(tokens_per_expert: Tensor, block: int) -> Tiles:
    experts, rows = tile_map(tokens_per_expert, block)
    return experts, torch.arange(len(rows)) * block


def _rows_from_zero(tokens_per_expert: Tensor, block: int) -> Tiles:
    experts, rows = tile_map(tokens_per_expert, block)
    return experts, rows - (tokens_per_expert.cumsum(0) - tokens_per_expert)[experts]


def _rows_not_covered(inputs: Inputs, output: Tiles) -> str | None:
    """How many rows the tiles cover: each expert's count in blocks, rounded up, and no more."""
    block = inputs["block"]
    for expert, count in enumerate(inputs["tokens_per_expert"].tolist()):
        tiles, needed = int((output[0] == expert).sum()), ceil_div(count, block)
        if tiles != needed:
            return f"expert {expert} has {count} rows and {tiles} tiles of {block}; it needs {needed}"
    return None


TILE_MAP = Exercise(
    id="06.tile_map",
    entry="tile_map",
    title="Which expert owns which tile",
    points=3,
    difficulty=2,
    minutes=15,
    hints=(
        "Draw it for 3, 0, 5, 1 rows and tiles of 4: expert 0 has one tile, expert 1 none, expert 2 two, expert 3 one. "
        "No tile may hold rows of two experts, so an expert's last tile is often ragged.",
        "An expert with n rows has n / block tiles, rounded up. Its first tile starts at its first row; each further "
        "one `block` rows on. Two nested loops do it: over experts, and over `range(begin, begin + count, block)`.",
        "Without loops: `tiles = (tokens_per_expert + block - 1) // block`, then "
        "`tile_experts = torch.arange(E).repeat_interleave(tiles)`. A tile's number within its expert is its own "
        "number minus that of the expert's first tile, `(tiles.cumsum(0) - tiles)[tile_experts]`.",
    ),
    reference=tile_map,
    cases=(
        Case("3, 0, 5, 1 rows in tiles of 4", _counts(3, 0, 5, 1, block=4)),
        Case("whole tiles only", _counts(16, 32, 16, block=16)),
        Case("one token each", _counts(1, 1, 1, block=16)),
        Case("two idle experts in front", _counts(0, 0, 7, 20, block=8)),
        Case("all rows with the last expert", _counts(0, 0, 0, 33, block=16)),
        Case("eight experts", _random(8, 16)),
        Case("one expert", _counts(21, block=8)),
        Case("no rows", _counts(0, 0, 0, block=16)),
    ),
    properties=(Property("every row is in a tile of its expert", _rows_not_covered),),
    returns=("tile_experts", "tile_rows"),
    normalise=_in_order,
    misconceptions=(
        Misconception(
            "ragged-tile-missing",
            "You round down, so the rows after an expert's last full tile are computed by nobody. Round up: "
            "`(count + block - 1) // block`.",
            lambda tokens_per_expert, block: _map(tokens_per_expert, tokens_per_expert // block, block),
        ),
        Misconception(
            "one-tile-too-many",
            "`count // block + 1` gives one tile too many whenever the count is a multiple of the block, 0 included. "
            "Rounding up is `(count + block - 1) // block`.",
            lambda tokens_per_expert, block: _map(tokens_per_expert, tokens_per_expert // block + 1, block),
        ),
        Misconception(
            "idle-expert-gets-a-tile",
            "An expert without tokens has a tile. It would load a weight matrix for nothing, or write over the rows of "
            "the expert after it. Zero rows need zero tiles.",
            lambda tokens_per_expert, block: _map(
                tokens_per_expert, ((tokens_per_expert + block - 1) // block).clamp(min=1), block
            ),
        ),
        Misconception(
            "idle-experts-renumber",
            "You leave out experts without tokens and number the rest anew, so everybody after an idle expert gets "
            "another expert's weights. An idle expert has no tile, and keeps its number.",
            _idle_skipped,
        ),
        Misconception(
            "tile-crosses-experts",
            "You cut all rows into tiles regardless of whose they are, so some tiles hold rows of two experts. A tile "
            "is multiplied by one weight matrix: each expert's tiles begin at its own first row.",
            _over_boundaries,
        ),
        Misconception(
            "rows-as-if-padded",
            "Your tiles begin at multiples of the block, as if each expert's rows were padded to whole tiles. The rows "
            "are not padded: an expert's tiles begin where its rows begin.",
            _padded_rows,
        ),
        Misconception(
            "rows-counted-within-expert",
            "Your `tile_rows` start at 0 for each expert. They are rows of the whole sorted matrix: add where the "
            "expert begins.",
            _rows_from_zero,
        ),
        Misconception(
            "begins-at-the-end",
            "Your tiles begin where their expert ends: the running total is inclusive. Subtract the expert's own "
            "count.",
            _ends,
        ),
        Misconception(
            "one-tile-for-each-expert",
            "Each expert has one tile, however many rows it has. A tile holds at most `block` rows, so busy experts "
            "need several.",
            lambda tokens_per_expert, block: _map(tokens_per_expert, (tokens_per_expert > 0).long(), block),
        ),
    ),
    alternatives=(_by_loops, _row_by_row),
)
