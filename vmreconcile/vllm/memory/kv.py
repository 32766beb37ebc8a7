"""The KV cache: what one block of tokens takes in each layer, and how many tokens fit. Pure.

Follows vllm/v1/kv_cache_interface.py and vllm/v1/core/kv_cache_utils.py (0.22.1; the same in 0.32.0 except what
`Serving.in_flight` says).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vmreconcile.vllm.memory.serving import Serving
from vmreconcile.vllm.memory.shape import Attention, Layer
from vmreconcile.vllm.memory.sizes import over

PADDING = 1.5
"""Groups are padded to the largest where it has less than this many times the layers of the smallest."""


class UnevenPagesError(ValueError):
    """Layers whose pages cannot be made equal: vLLM does not start such a model with its hybrid cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One layer's share of one block: bytes, tokens, and how far back the layer looks."""

    size: int
    block: int
    window: int | None = None
    chunk: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The KV cache of one GPU: bytes of one block over all layers, and the blocks' kinds, one for each group.

    Each group of layers has a block table of its own; a block serves one group.
    """

    block_bytes: int
    groups: tuple[Page, ...]

    def blocks(self, size: int) -> int:
        """Blocks that fit into `size` bytes: get_num_blocks."""
        return max(0, size) // self.block_bytes if self.block_bytes else 0

    def blocks_a_request(self, length: int, in_flight: int) -> int:
        """Blocks that one request of `length` tokens may hold at once: max_memory_usage_bytes of each group."""
        return sum(_held(page, length, in_flight) for page in self.groups)

    def needed(self, length: int, in_flight: int) -> int:
        """Bytes for one request of `length` tokens."""
        return self.blocks_a_request(length, in_flight) * self.block_bytes

    def concurrency(self, size: int, length: int, in_flight: int) -> float:
        """Requests of `length` tokens that fit: get_max_concurrency_for_kv_cache_config."""
        held = self.blocks_a_request(length, in_flight)
        return self.blocks(size) / held if held else 0.0

    def tokens(self, size: int, length: int, in_flight: int, *, by_group: bool = False) -> int:
        """Tokens as vLLM reports them, int(concurrency * length): _report_kv_cache_config.

        `by_group`: as versions before 0.22 do, blocks a group times their tokens.
        """
        if by_group:
            return self.blocks(size) // len(self.groups) * min(page.block for page in self.groups)
        return int(self.concurrency(size, length, in_flight) * length)

    def longest(self, size: int, limit: int, in_flight: int) -> int:
        """The longest request up to `limit` that fits, 0 for none: _estimate_max_model_len_from_groups."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.needed(middle, in_flight) <= size else (low, middle - 1)
        return low


def _held(page: Page, length: int, in_flight: int) -> int:
    """Blocks of one group for one request: max_admission_blocks_per_request of each kind."""
    if page.window is not None:
        return over(min(page.window - 1 + in_flight, length), page.block) + 1
    if page.chunk is not None:
        return over(min(page.chunk + in_flight, length), page.block)
    return over(length, page.block)


def pool(layers: tuple[Layer, ...], whole: tuple[Layer, ...], serving: Serving) -> Pool:
    """The KV cache of one GPU with these layers, grouped by those of the whole model.

    Raises:
        UnevenPagesError: the layers' pages cannot be made equal.
    """
    pages = [page_of(layer.attention, serving) for layer in whole]
    mixed = len({(page.window, page.chunk) for page in pages}) > 1
    if mixed and serving.hybrid:
        return _hybrid(pages, len(layers), len(whole))
    first = replace(pages[0], window=None, chunk=None) if mixed else pages[0]
    return Pool(block_bytes=sum(page_of(layer.attention, serving).size for layer in layers), groups=(first,))


def page_of(attention: Attention, serving: Serving) -> Page:
    """One layer's page.

    AttentionSpec and MLAAttentionSpec: heads of one GPU times both head sizes; MLA keeps one latent vector a token,
    which is not split.
    """
    if latent := attention.latent:
        size = serving.block * (latent.kv_rank + latent.rope) * serving.kv_itemsize
        return Page(size=int(size), block=serving.block)
    heads = serving.share(attention.kv_heads)
    size = serving.block * heads * (attention.head_dim + attention.value_dim) * serving.kv_itemsize
    return Page(size=int(size), block=serving.block, window=attention.window, chunk=attention.chunk)


def _hybrid(pages: list[Page], mine: int, whole: int) -> Pool:
    """Layers of several kinds: pages made equal, layers put into groups of one size.

    unify_kv_cache_spec_page_size, _get_kv_cache_groups_uniform_page_size. A pipeline stage has its share of each group.
    """
    largest = max(page.size for page in pages)
    equal = [_widened(page, largest) for page in pages]
    kinds: dict[Page, int] = {}
    for page in equal:
        kinds[page] = kinds.get(page, 0) + 1
    fewest, most = min(kinds.values()), max(kinds.values())
    size = most if most < fewest * PADDING else fewest
    groups = tuple(page for page, count in kinds.items() for _ in range(over(count, size)))
    return Pool(block_bytes=largest * over(size * mine, whole), groups=groups)


def _widened(page: Page, largest: int) -> Page:
    if largest % page.size:
        raise UnevenPagesError(f"pages of {page.size} and {largest} bytes")
    return replace(page, size=largest, block=page.block * (largest // page.size))
