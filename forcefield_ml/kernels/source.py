"""C source of an equivariant convolution and its gradients, unrolled for given orders, channels and paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

LANES = (16, 8, 4, 2, 1)
"""Numbers per vector: channels are cut into blocks of these sizes, the largest first."""

TINY = 1e-10
"""Couplings below this are zero."""


@dataclass(frozen=True)
class Path:
    """One coupling of a filter of order f and features of order i to features of order o.

    Attributes
    ----------
    orders
        f, i, o.
    scale
        What the radial weights of the path are multiplied by beforehand, so that most couplings are 1.
    couplings
        (2 f + 1, 2 i + 1, 2 o + 1), divided by `scale`.
    """

    orders: tuple[int, int, int]
    scale: float
    couplings: NDArray[np.float64]


def make_path(orders: tuple[int, int, int], couplings: NDArray[np.float64]) -> Path:
    """Return a path whose first coupling is 1."""
    found = couplings[np.abs(couplings) > TINY]
    return Path(orders, float(found[0]), couplings / found[0])


def channel_blocks(n_channels: int) -> list[tuple[int, int]]:
    """Return the first channel and the size of each block of channels."""
    blocks, start = [], 0
    while start < n_channels:
        lanes = next(size for size in LANES if size <= n_channels - start)
        blocks.append((start, lanes))
        start += lanes
    return blocks


def weight_order(n_paths: int, n_channels: int) -> list[int]:
    """Return where weight (path, channel), numbered path-major, stands in a row of the table: block by block.

    ``row = flat[weight_order(...)]`` brings path-major weights into the kernel's order.
    """
    order: list[int] = []
    for start, lanes in channel_blocks(n_channels):
        for path in range(n_paths):
            order.extend(range(path * n_channels + start, path * n_channels + start + lanes))
    return order


@dataclass
class Factors:
    """The factors Z = sum_m C Y_m of the paths, each linear form once."""

    forms: dict[tuple[tuple[int, float], ...], int] = field(default_factory=dict)

    def place(self, coefficients: NDArray[np.float64], f: int) -> int | None:
        """Return the number of a factor, None for zero."""
        key = tuple((f * f + m, round(float(c), 9)) for m, c in enumerate(coefficients) if abs(c) > TINY)
        return self.forms.setdefault(key, len(self.forms)) if key else None

    def name(self, coefficients: NDArray[np.float64], f: int) -> str:
        """Return C for a factor, nothing for zero; what depends on no direction is a number."""
        if f == 0 and abs(coefficients[0]) > TINY:
            return number(float(coefficients[0]))
        place = self.place(coefficients, f)
        return "" if place is None else f"z[{place}][k]"


def number(value: float) -> str:
    """Return a float constant of C."""
    return f"{value:.9e}f"


def times(factor: str, value: str) -> str:
    """Return a product in C."""
    return value if factor == number(1.0) else f"{factor} * {value}"


def total(terms: Sequence[str]) -> str:
    """Return a sum in C."""
    return " + ".join(terms)


def _path_factors(path: Path, factors: Factors) -> list[list[str]]:
    """Return Z[m'][m''] of a path as C."""
    f, i, o = path.orders
    return [[factors.name(path.couplings[:, a, b], f) for b in range(2 * o + 1)] for a in range(2 * i + 1)]


def _forward_lines(paths: Sequence[Path], factors: Factors, has_features: bool) -> list[str]:
    """Return the statements of one pair and one block of channels: out += R (Z (x) x)."""
    lines: list[str] = []
    for p, path in enumerate(paths):
        _, i, o = path.orders
        z = _path_factors(path, factors)
        if not has_features:
            lines.extend(f"out{o * o + b} += {times(z[0][b], f'w{p}')};" for b in range(2 * o + 1) if z[0][b])
        elif o < i:
            for b in range(2 * o + 1):
                terms = [times(z[a][b], f"x{i * i + a}") for a in range(2 * i + 1) if z[a][b]]
                lines.append(f"out{o * o + b} += w{p} * ({total(terms)});")
        else:
            lines.append("{")
            lines.extend(f"const V t{a} = w{p} * x{i * i + a};" for a in range(2 * i + 1))
            for b in range(2 * o + 1):
                lines.extend(f"out{o * o + b} += {times(z[a][b], f't{a}')};" for a in range(2 * i + 1) if z[a][b])
            lines.append("}")
    return lines


def _backward_lines(paths: Sequence[Path], factors: Factors, has_features: bool) -> list[str]:
    """Return the statements of one pair and one block: dw_p, and dx += R (Z^T g)."""
    lines: list[str] = []
    for p, path in enumerate(paths):
        _, i, o = path.orders
        z = _path_factors(path, factors)
        if not has_features:
            terms = [times(z[0][b], f"g{o * o + b}") for b in range(2 * o + 1) if z[0][b]]
            lines.append(f"const V dw{p} = {total(terms)};")
        elif o < i:
            lines.append(f"V dw{p} = ZERO; {{")
            for b in range(2 * o + 1):
                inner = [times(z[a][b], f"x{i * i + a}") for a in range(2 * i + 1) if z[a][b]]
                lines.append(f"dw{p} += g{o * o + b} * ({total(inner)}); const V t{b} = w{p} * g{o * o + b};")
                lines.extend(f"dx{i * i + a} += {times(z[a][b], f't{b}')};" for a in range(2 * i + 1) if z[a][b])
            lines.append("}")
        else:
            lines.append(f"V dw{p} = ZERO; {{")
            for a in range(2 * i + 1):
                inner = [times(z[a][b], f"g{o * o + b}") for b in range(2 * o + 1) if z[a][b]]
                lines.append(f"const V t{a} = {total(inner)};")
                lines.append(f"dw{p} += x{i * i + a} * t{a}; dx{i * i + a} += w{p} * t{a};")
            lines.append("}")
    return lines


HEAD = """\
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

typedef float F16 __attribute__((vector_size(64)));
typedef float F8 __attribute__((vector_size(32)));
typedef float F4 __attribute__((vector_size(16)));
typedef float F2 __attribute__((vector_size(8)));
typedef float F1;

/* what all channels of a row need to know of its neighbours */
enum {{ N_FACTORS = {n_factors}, WIDTH = {width} }};
typedef struct {{
    int32_t neighbour[WIDTH], cell[WIDTH];
    float node[4][WIDTH], z[N_FACTORS + 1][WIDTH];
    {fields}
}} Row;

static inline __attribute__((always_inline)) int read_row(
    Row *restrict row, int64_t places, int64_t n_in, const int64_t *restrict indices, const float *restrict vectors,
    const uint8_t *restrict mask, const int32_t *restrict kinds, int32_t n_nodes, float first, float last, float scale,
    int64_t *restrict foreign)
{{
    float x[WIDTH], y[WIDTH], zed[WIDTH];
    int count = 0;
    uint64_t largest = 0;
    for (int64_t k = 0; k < places; k++) {{
        const float a = vectors[3 * k], b = vectors[3 * k + 1], c = vectors[3 * k + 2];
        const uint64_t index = -(uint64_t)(mask[k] != 0) & (uint64_t)indices[k];
        largest = index > largest ? index : largest;
        row->neighbour[count] = (int32_t)indices[k];
        x[count] = a; y[count] = b; zed[count] = c;
        {keep_place}
        count += mask[k] != 0;
    }}
    if (count && largest >= (uint64_t)n_in) {{ /* read nothing that is not there; below 0 is large, too */
        ++*foreign;
        return 0;
    }}
    const float per_cell = (float)(n_nodes - 1) / (last - first);
    for (int k = 0; k < count; k++) {{
        const float squared = x[k] * x[k] + y[k] * y[k] + zed[k] * zed[k];
        const float inverse = 1.0f / sqrtf(squared);
        float place = (scale / (scale + squared) - first) * per_cell;
        place = place < 0.0f ? 0.0f : place; /* beyond the cutoff as at the cutoff; a NaN stays one */
        /* also for NaN, so that it is read, not dereferenced: the comparisons are false */
        const float low = place > 1.0f ? place - 1.0f : 0.0f;
        int32_t cell = (int32_t)(low < (float)(n_nodes - 4) ? low : (float)(n_nodes - 4));
        const float t = place - (float)cell;
        row->cell[k] = cell;
        row->node[0][k] = (t - 1.0f) * (t - 2.0f) * (t - 3.0f) * (-1.0f / 6.0f);
        row->node[1][k] = t * (t - 2.0f) * (t - 3.0f) * 0.5f;
        row->node[2][k] = t * (t - 1.0f) * (t - 3.0f) * -0.5f;
        row->node[3][k] = t * (t - 1.0f) * (t - 2.0f) * (1.0f / 6.0f);
        const float n0 = x[k] * inverse, n1 = y[k] * inverse, n2 = zed[k] * inverse;
{harmonics}
{factors}
        {keep_geometry}
    }}
    if (kinds)
        for (int k = 0; k < count; k++) row->cell[k] += kinds[row->neighbour[k]] * n_nodes;
    return count;
}}
"""

HARMONICS = {
    0: "const float y0 = 1.0f;",
    1: "const float y1 = 1.7320508f * n0, y2 = 1.7320508f * n1, y3 = 1.7320508f * n2;",
    2: (
        "const float y4 = 3.8729833f * n0 * n2, y5 = 3.8729833f * n0 * n1;\n"
        "        const float y6 = 2.2360680f * (n1 * n1 - 0.5f * (n0 * n0 + n2 * n2));\n"
        "        const float y7 = 3.8729833f * n1 * n2, y8 = 1.9364917f * (n2 * n2 - n0 * n0);"
    ),
}
"""As `nn.spherical.spherical_harmonics`."""

FORWARD = """\
static inline __attribute__((always_inline)) void forward_{lanes}(
    const Row *restrict row, int count, const float *restrict x, const float *restrict table, float *restrict out)
{{
    typedef F{lanes} V;
    const float (*restrict z)[WIDTH] = row->z;
    {declare_out}
    for (int k = 0; k < count; k++) {{
        const float *restrict t0 = table + (int64_t)row->cell[k] * {row_size};
        const float c0 = row->node[0][k], c1 = row->node[1][k], c2 = row->node[2][k], c3 = row->node[3][k];
        {load_features}
        {weights}
        {statements}
    }}
    {store_out}
}}
"""

BACKWARD = """\
static inline __attribute__((always_inline)) void backward_{lanes}(
    const Row *restrict row, int count, const float *restrict x, const float *restrict table,
    const float *restrict gradient, float *restrict gradient_x, float *restrict gradient_table)
{{
    typedef F{lanes} V;
    const V ZERO = {{0}};
    (void)ZERO;
    const float (*restrict z)[WIDTH] = row->z;
    {load_gradient}
    for (int k = 0; k < count; k++) {{
        const int64_t at = (int64_t)row->cell[k] * {row_size};
        const float *restrict t0 = table + at;
        float *restrict d0 = gradient_table + at;
        const float c0 = row->node[0][k], c1 = row->node[1][k], c2 = row->node[2][k], c3 = row->node[3][k];
        {load_features}
        {weights}
        {declare_dx}
        {statements}
        {store_dx}
        {store_table}
    }}
}}
"""

TAIL = """\
/* Returns how many rows name an atom that is none of the n_in; such rows come out as 0. */
int64_t forward(
    int64_t n_out, int64_t places, int64_t n_in, const float *x, const float *table, const int64_t *indices,
    const float *vectors, const uint8_t *mask, const int32_t *kinds, int32_t n_nodes, float first, float last,
    float scale, float *out, int32_t threads)
{{
    (void)threads;
    int64_t foreign = 0;
#pragma omp parallel for schedule(dynamic, 32) num_threads(threads) reduction(+ : foreign)
    for (int64_t i = 0; i < n_out; i++) {{
        Row row;
        const int count = read_row(&row, places, n_in, indices + i * places, vectors + 3 * i * places,
                                   mask + i * places, kinds, n_nodes, first, last, scale, &foreign);
        float *restrict mine = out + i * {out_size};
        {call_forward}
    }}
    return foreign;
}}

/* gradient_x and gradient_table hold one copy per thread, zero at the start; rows are dealt out in fixed shares, so
   that sums come out the same from run to run */
void backward(
    int64_t n_out, int64_t places, int64_t n_in, const float *x, const float *table, const int64_t *indices,
    const float *vectors, const uint8_t *mask, const int32_t *kinds, int32_t n_nodes, float first, float last,
    float scale, const float *gradient, float *gradient_x, int64_t x_size, float *gradient_table, int64_t table_size,
    int32_t threads)
{{
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int32_t share = 0; share < threads; share++) {{
        const int64_t begin = n_out * share / threads, end = n_out * (share + 1) / threads;
        float *dx = gradient_x + share * x_size, *dt = gradient_table + share * table_size;
        for (int64_t i = begin; i < end; i++) {{
            Row row;
            int64_t foreign = 0; /* refused by the forward pass */
            const int count = read_row(&row, places, n_in, indices + i * places, vectors + 3 * i * places,
                                       mask + i * places, kinds, n_nodes, first, last, scale, &foreign);
            const float *restrict mine = gradient + i * {out_size};
            {call_backward}
        }}
    }}
}}
"""


def head(
    factors: Factors, filter_order: int, width: int, fields: str = "", keep_place: str = "", keep_geometry: str = ""
) -> str:
    """Return what every kernel begins with: types, and how a row is read.

    Parameters
    ----------
    factors
        All that the kernel uses.
    filter_order
        Largest order of the harmonics.
    width
        Neighbours that a row can hold.
    fields, keep_place, keep_geometry
        What a kernel keeps of a row besides: more fields, and how they are set, neighbour by neighbour.
    """
    with_constant = any(m == 0 for form in factors.forms for m, _ in form)
    return HEAD.format(
        n_factors=len(factors.forms),
        width=width,
        harmonics="\n".join(
            "        " + HARMONICS[order] for order in range(filter_order + 1) if order or with_constant
        ),
        factors="\n".join(
            f"        row->z[{place}][k] = {total([times(number(c), f'y{m}') for m, c in form])};"
            for form, place in factors.forms.items()
        ),
        fields=fields,
        keep_place=keep_place,
        keep_geometry=keep_geometry,
    )


def convolution_source(
    paths: Sequence[Path], n_channels: int, filter_order: int, in_order: int, out_order: int, width: int, kinds: bool
) -> str:
    """Return C with ``forward`` and ``backward`` of a convolution.

    out_i,c^o = sum_j sum_p R_p,c(r_ij) sum_m,m' C^p_m,m' Y_m(r_ij) x_j,c,m'. Radial weights R come from a table over
    u = a / (a + r^2), cubic between its nodes. Couplings and harmonics are contracted first, once for all channels;
    channels run in vectors.

    Parameters
    ----------
    paths
        Couplings; path p owns the table's columns of that number, see `weight_order`.
    n_channels
        C.
    filter_order, in_order, out_order
        Largest orders.
    width
        Neighbours that a row can hold.
    kinds
        True if each atom has a table of its kind and no features (all are 1); `in_order` is then 0.
    """
    factors = Factors()
    forward = _forward_lines(paths, factors, not kinds)
    backward = _backward_lines(paths, factors, not kinds)
    n_in, n_out = (in_order + 1) ** 2, (out_order + 1) ** 2
    row_size = len(paths) * n_channels
    pieces = [head(factors, filter_order, width)]
    call_forward, call_backward = [], []
    for start, lanes in channel_blocks(n_channels):
        column = start * len(paths)
        call_forward.append(f"forward_{lanes}(&row, count, x + {start}, table + {column}, mine + {start});")
        call_backward.append(
            f"backward_{lanes}(&row, count, x + {start}, table + {column}, mine + {start}, dx + {start}, "
            f"dt + {column});"
        )
    for lanes in sorted({lanes for _, lanes in channel_blocks(n_channels)}):
        size = "sizeof(V)"
        load_x = [
            f"V x{m}; memcpy(&x{m}, x + (int64_t)row->neighbour[k] * {n_in * n_channels} + {m * n_channels}, {size});"
            for m in range(n_in)
        ]
        weights = []
        for p in range(len(paths)):
            loads = " ".join(f"V a{q}; memcpy(&a{q}, t0 + {q * row_size + p * lanes}, {size});" for q in range(4))
            weights.append(f"V w{p}; {{ {loads} w{p} = c0 * a0 + c1 * a1 + c2 * a2 + c3 * a3; }}")
        common = {
            "lanes": lanes,
            "row_size": row_size,
            "load_features": "" if kinds else "\n        ".join(load_x),
        }
        pieces.append(
            FORWARD.format(
                **common,
                weights="\n        ".join(weights),
                declare_out=" ".join(f"V out{b} = {{0}};" if lanes > 1 else f"V out{b} = 0;" for b in range(n_out)),
                statements="\n        ".join(forward),
                store_out=" ".join(f"memcpy(out + {b * n_channels}, &out{b}, {size});" for b in range(n_out)),
            )
        )
        store_dx = []
        store_table = []
        if not kinds:
            store_dx.append(f"float *restrict to = gradient_x + (int64_t)row->neighbour[k] * {n_in * n_channels};")
            for m in range(n_in):
                at = f"to + {m * n_channels}"
                store_dx.append(f"{{ V old; memcpy(&old, {at}, {size}); old += dx{m}; memcpy({at}, &old, {size}); }}")
        for p in range(len(paths)):
            for q in range(4):
                at = f"d0 + {q * row_size + p * lanes}"
                store_table.append(
                    f"{{ V old; memcpy(&old, {at}, {size}); old += c{q} * dw{p}; memcpy({at}, &old, {size}); }}"
                )
        pieces.append(
            BACKWARD.format(
                **common,
                weights="" if kinds else "\n        ".join(weights),
                load_gradient=" ".join(
                    f"V g{b}; memcpy(&g{b}, gradient + {b * n_channels}, {size});" for b in range(n_out)
                ),
                declare_dx="" if kinds else " ".join(f"V dx{m} = ZERO;" for m in range(n_in)),
                statements="\n        ".join(backward),
                store_dx="\n        ".join(store_dx),
                store_table="\n        ".join(store_table),
            )
        )
    pieces.append(
        TAIL.format(
            out_size=n_out * n_channels,
            call_forward="\n        ".join(call_forward),
            call_backward="\n            ".join(call_backward),
        )
    )
    return "\n".join(pieces)
