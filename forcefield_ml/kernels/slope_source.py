"""C source of a convolution's derivatives by the vectors between atoms, and of what training on these needs.

With out_b = sum_k sum_p w_p sum_a z_ab x_a (w radial weights, z factors of the direction, x features of neighbour k)
and g the gradient of E by out, `slope` returns dE/dx and dE/dr. A loss on these, with gradients a by dE/dx and t by
dE/dr, is A = <a, dE/dx> + <t, dE/dr>: the change of <g, out> where features move by a and atoms by t. Its derivatives

    dA/dg_b = w_p (z_ab a_a + z'_ab x_a) + w'_p z_ab x_a
    dA/dx_a = (w'_p z_ab + w_p z'_ab) g_b
    dA/dw_p = g_b (z_ab a_a + z'_ab x_a),    dA/dw'_p = g_b z_ab x_a

(summed over what stands twice; w' and z' are the changes of w and z where atoms move by t) are what `curve` returns.
"""

from __future__ import annotations

from collections.abc import Sequence

from forcefield_ml.kernels.source import Factors, Path, channel_blocks, head, total

FIELDS = """\
    int32_t from[WIDTH];
    float n[3][WIDTH], inverse[WIDTH], steep[WIDTH], rate[4][WIDTH], zt[N_FACTORS + 1][WIDTH], move[WIDTH];"""

KEEP_PLACE = "row->from[count] = (int32_t)k;"

KEEP_GEOMETRY = """\
row->n[0][k] = n0; row->n[1][k] = n1; row->n[2][k] = n2; row->inverse[k] = inverse;
        /* d place / d distance; beyond the cutoff nothing changes any more */
        row->steep[k] = place > 0.0f
            ? -2.0f * squared * inverse * scale / ((scale + squared) * (scale + squared)) * per_cell : 0.0f;
        const float e = t - 1.0f, f = t - 2.0f, g = t - 3.0f; /* the interpolation's polynomials, differentiated */
        row->rate[0][k] = (f * g + e * g + e * f) * (-1.0f / 6.0f);
        row->rate[1][k] = (f * g + t * g + t * f) * 0.5f;
        row->rate[2][k] = (e * g + t * g + t * e) * -0.5f;
        row->rate[3][k] = (e * f + t * f + t * e) * (1.0f / 6.0f);"""

TANGENTS = {
    0: "const float t0 = 0.0f;",
    1: "const float t1 = 1.7320508f * d0, t2 = 1.7320508f * d1, t3 = 1.7320508f * d2;",
    2: (
        "const float t4 = 3.8729833f * (d0 * n2 + n0 * d2), t5 = 3.8729833f * (d0 * n1 + n0 * d1);\n"
        "        const float t6 = 2.2360680f * (2.0f * n1 * d1 - n0 * d0 - n2 * d2);\n"
        "        const float t7 = 3.8729833f * (d1 * n2 + n1 * d2), t8 = 3.8729833f * (n2 * d2 - n0 * d0);"
    ),
}
"""How harmonics change where the direction n changes by d."""

COTANGENTS = {
    1: "d0 += 1.7320508f * t1; d1 += 1.7320508f * t2; d2 += 1.7320508f * t3;",
    2: (
        "d0 += 3.8729833f * (n2 * t4 + n1 * t5 - n0 * t8) - 2.2360680f * n0 * t6;\n"
        "        d1 += 3.8729833f * (n0 * t5 + n2 * t7) + 4.4721360f * n1 * t6;\n"
        "        d2 += 3.8729833f * (n0 * t4 + n1 * t7 + n2 * t8) - 2.2360680f * n2 * t6;"
    ),
}
"""The reverse: the derivative by the direction, of derivatives t by harmonics."""

SUMS = """\
static inline float sum_1(F1 v) { return v; }
static inline float sum_2(F2 v) { return v[0] + v[1]; }
""" + "\n".join(
    f"static inline float sum_{lanes}(F{lanes} v) {{ F{lanes // 2} a, b; memcpy(&a, &v, sizeof a); "
    f"memcpy(&b, (const char *)&v + sizeof a, sizeof b); return sum_{lanes // 2}(a + b); }}"
    for lanes in (4, 8, 16)
)

MOVE = """\
/* how place and factors change where neighbours move by those vectors */
static void move_row(Row *restrict row, int count, const float *restrict by)
{{
    for (int k = 0; k < count; k++) {{
        const float *b = by + 3 * row->from[k];
        const float n0 = row->n[0][k], n1 = row->n[1][k], n2 = row->n[2][k], along = n0 * b[0] + n1 * b[1] + n2 * b[2];
        const float d0 = (b[0] - n0 * along) * row->inverse[k], d1 = (b[1] - n1 * along) * row->inverse[k];
        const float d2 = (b[2] - n2 * along) * row->inverse[k];
        row->move[k] = row->steep[k] * along;
        (void)d0; (void)d1; (void)d2;
        {tangents}
        {factors}
    }}
}}

/* the derivative by the vectors, of those by the factors (in zt) and by the place (in move) */
static void write_slope(const Row *restrict row, int count, float *restrict to)
{{
    for (int k = 0; k < count; k++) {{
        const float n0 = row->n[0][k], n1 = row->n[1][k], n2 = row->n[2][k];
        float d0 = 0.0f, d1 = 0.0f, d2 = 0.0f;
        {by_harmonics}
        {cotangents}
        const float along = n0 * d0 + n1 * d1 + n2 * d2, inverse = row->inverse[k];
        const float radial = row->steep[k] * row->move[k];
        to[3 * row->from[k]] = (d0 - n0 * along) * inverse + radial * n0;
        to[3 * row->from[k] + 1] = (d1 - n1 * along) * inverse + radial * n1;
        to[3 * row->from[k] + 2] = (d2 - n2 * along) * inverse + radial * n2;
    }}
}}
"""

SLOPE = """\
static inline __attribute__((always_inline)) void slope_{lanes}(
    Row *restrict row, int count, const float *restrict x, const float *restrict table, const float *restrict gradient,
    float *restrict gradient_x)
{{
    typedef F{lanes} V;
    const V ZERO = {{0}};
    (void)ZERO;
    const float (*restrict z)[WIDTH] = row->z;
    {load_gradient}
    for (int k = 0; k < count; k++) {{
        const float *restrict t0 = table + (int64_t)row->cell[k] * {row_size};
        {load_rates}
        {load_features}
        {weights}
        {declare}
        {statements}
        {store_dx}
        {store_z}
        row->move[k] += sum_{lanes}(place);
    }}
}}
"""

CURVE = """\
static inline __attribute__((always_inline)) void curve_{lanes}(
    const Row *restrict row, int count, const float *restrict x, const float *restrict table,
    const float *restrict gradient, const float *restrict moved, float *restrict out, float *restrict gradient_x,
    float *restrict gradient_table)
{{
    typedef F{lanes} V;
    const V ZERO = {{0}};
    const float (*restrict z)[WIDTH] = row->z, (*restrict zt)[WIDTH] = row->zt;
    {load_gradient}
    {declare_out}
    for (int k = 0; k < count; k++) {{
        const int64_t at = (int64_t)row->cell[k] * {row_size};
        const float *restrict t0 = table + at;
        float *restrict d0 = gradient_table + at;
        {load_rates}
        {load_features}
        {load_moved}
        {weights}
        {declare}
        {statements}
        {store_dx}
        {store_table}
    }}
    {store_out}
}}
"""

TAIL = """\
/* As `backward` of a convolution, but by features and vectors (n_out, places, 3), zero at the start. */
void slope(
    int64_t n_out, int64_t places, int64_t n_in, const float *x, const float *table, const int64_t *indices,
    const float *vectors, const uint8_t *mask, const int32_t *kinds, int32_t n_nodes, float first, float last,
    float scale, const float *gradient, float *gradient_x, int64_t x_size, float *gradient_vectors, int32_t threads)
{{
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int32_t share = 0; share < threads; share++) {{
        const int64_t begin = n_out * share / threads, end = n_out * (share + 1) / threads;
        float *dx = gradient_x + share * x_size;
        (void)dx;
        for (int64_t i = begin; i < end; i++) {{
            Row row;
            int64_t foreign = 0; /* refused by the forward pass */
            const int count = read_row(&row, places, n_in, indices + i * places, vectors + 3 * i * places,
                                       mask + i * places, kinds, n_nodes, first, last, scale, &foreign);
            const float *restrict mine = gradient + i * {out_size};
            memset(row.move, 0, sizeof(float) * count);
            for (int f = 0; f < N_FACTORS; f++) memset(row.zt[f], 0, sizeof(float) * count);
            {call_slope}
            write_slope(&row, count, gradient_vectors + 3 * i * places);
        }}
    }}
}}

/* What training on the results of `slope` needs: `moved` and `by` are the gradients of a loss by these. */
void curve(
    int64_t n_out, int64_t places, int64_t n_in, const float *x, const float *table, const int64_t *indices,
    const float *vectors, const uint8_t *mask, const int32_t *kinds, int32_t n_nodes, float first, float last,
    float scale, const float *gradient, const float *moved, const float *by, float *out, float *gradient_x,
    int64_t x_size, float *gradient_table, int64_t table_size, int32_t threads)
{{
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int32_t share = 0; share < threads; share++) {{
        const int64_t begin = n_out * share / threads, end = n_out * (share + 1) / threads;
        float *dx = gradient_x + share * x_size, *dt = gradient_table + share * table_size;
        (void)dx;
        for (int64_t i = begin; i < end; i++) {{
            Row row;
            int64_t foreign = 0;
            const int count = read_row(&row, places, n_in, indices + i * places, vectors + 3 * i * places,
                                       mask + i * places, kinds, n_nodes, first, last, scale, &foreign);
            const float *restrict mine = gradient + i * {out_size};
            float *restrict to = out + i * {out_size};
            move_row(&row, count, by + 3 * i * places);
            {call_curve}
        }}
    }}
}}
"""


def slope_source(
    paths: Sequence[Path], n_channels: int, filter_order: int, in_order: int, out_order: int, width: int, kinds: bool
) -> str:
    """Return C with ``slope`` and ``curve`` of a convolution; parameters as of `source.convolution_source`."""
    factors = Factors()
    places = [_places(path, factors) for path in paths]
    n_in, n_out = (in_order + 1) ** 2, (out_order + 1) ** 2
    forms = [(place, form) for form, place in factors.forms.items()]
    orders = range(filter_order + 1)
    pieces = [
        head(factors, filter_order, width, FIELDS, KEEP_PLACE, KEEP_GEOMETRY),
        SUMS,
        MOVE.format(
            tangents="\n        ".join(TANGENTS[order] for order in orders if order or _uses(factors, 0)),
            factors="\n        ".join(
                f"row->zt[{place}][k] = {total([f'{c:.9e}f * t{m}' for m, c in form])};" for place, form in forms
            ),
            by_harmonics="\n        ".join(
                f"const float t{m} = {_by_harmonic(factors, m)};" for m in range(1, (filter_order + 1) ** 2)
            ),
            cotangents="\n        ".join(COTANGENTS[order] for order in orders if order),
        ),
    ]
    calls: dict[str, list[str]] = {"slope": [], "curve": []}
    for start, lanes in channel_blocks(n_channels):
        column, dx = start * len(paths), f"dx + {start}"
        calls["slope"].append(f"slope_{lanes}(&row, count, x + {start}, table + {column}, mine + {start}, {dx});")
        calls["curve"].append(
            f"curve_{lanes}(&row, count, x + {start}, table + {column}, mine + {start}, moved + {start}, to + {start}, "
            f"{dx}, dt + {column});"
        )
    row_size = len(paths) * n_channels
    for lanes in sorted({lanes for _, lanes in channel_blocks(n_channels)}):
        common = {
            "lanes": lanes,
            "row_size": row_size,
            "load_gradient": " ".join(_read(f"g{b}", f"gradient + {b * n_channels}") for b in range(n_out)),
            "load_rates": "const float "
            + ", ".join(f"c{q} = row->node[{q}][k], r{q} = row->rate[{q}][k]" for q in range(4))
            + ";",
            "load_features": "" if kinds else _load("x", "x", n_in, n_channels),
            "store_dx": "" if kinds else _add_dx(n_in, n_channels),
        }
        pieces.append(
            SLOPE.format(
                **common,
                weights=_weights(len(paths), lanes, row_size, "v"),
                declare=" ".join(
                    f"V {name} = ZERO;"
                    for name in ("place", *(f"s{f}" for f, _ in forms), *([] if kinds else _numbered("dx", n_in)))
                ),
                statements="\n        ".join(_slope_lines(paths, places, kinds)),
                store_z="\n        ".join(f"row->zt[{f}][k] += sum_{lanes}(s{f});" for f, _ in forms),
            )
        )
        pieces.append(
            CURVE.format(
                **common,
                load_moved="" if kinds else _load("a", "moved", n_in, n_channels),
                weights="const float move = row->move[k];\n        "
                + _weights(len(paths), lanes, row_size, "u")
                + "\n        "
                + " ".join(f"const V v{p} = move * u{p};" for p in range(len(paths))),
                declare="" if kinds else " ".join(f"V {name} = ZERO;" for name in _numbered("dx", n_in)),
                declare_out=" ".join(f"V out{b} = ZERO;" for b in range(n_out)),
                statements="\n        ".join(_curve_lines(paths, places, kinds)),
                store_table="\n        ".join(
                    f"{{ V old; memcpy(&old, d0 + {q * row_size + p * lanes}, sizeof(V)); "
                    f"old += c{q} * da{p} + (move * r{q}) * db{p}; "
                    f"memcpy(d0 + {q * row_size + p * lanes}, &old, sizeof(V)); }}"
                    for p in range(len(paths))
                    for q in range(4)
                ),
                store_out=" ".join(f"memcpy(out + {b * n_channels}, &out{b}, sizeof(V));" for b in range(n_out)),
            )
        )
    pieces.append(
        TAIL.format(
            out_size=n_out * n_channels,
            call_slope="\n            ".join(calls["slope"]),
            call_curve="\n            ".join(calls["curve"]),
        )
    )
    return "\n".join(pieces)


def _places(path: Path, factors: Factors) -> list[list[int | None]]:
    """Return which factor couples input a to output b; a direction that stays the same has one, too: of order 0."""
    f, i, o = path.orders
    return [[factors.place(path.couplings[:, a, b], f) for b in range(2 * o + 1)] for a in range(2 * i + 1)]


def _uses(factors: Factors, harmonic: int) -> bool:
    return any(m == harmonic for form in factors.forms for m, _ in form)


def _by_harmonic(factors: Factors, harmonic: int) -> str:
    terms = [
        f"{c:.9e}f * row->zt[{place}][k]" for form, place in factors.forms.items() for m, c in form if m == harmonic
    ]
    return total(terms) if terms else "0.0f"


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}{m}" for m in range(count)]


def _read(name: str, where: str) -> str:
    return f"V {name}; memcpy(&{name}, {where}, sizeof(V));"


def _load(name: str, pointer: str, n_in: int, n_channels: int) -> str:
    at = f"{pointer} + (int64_t)row->neighbour[k] * {n_in * n_channels}"
    return "\n        ".join(_read(f"{name}{m}", f"{at} + {m * n_channels}") for m in range(n_in))


def _add_dx(n_in: int, n_channels: int) -> str:
    lines = [f"float *restrict to = gradient_x + (int64_t)row->neighbour[k] * {n_in * n_channels};"]
    for m in range(n_in):
        at = f"to + {m * n_channels}"
        lines.append(f"{{ V old; memcpy(&old, {at}, sizeof(V)); old += dx{m}; memcpy({at}, &old, sizeof(V)); }}")
    return "\n        ".join(lines)


def _weights(n_paths: int, lanes: int, row_size: int, rate: str) -> str:
    """Return the weights w of each path, and under the name `rate` how they change with the place in the table."""
    lines = []
    for p in range(n_paths):
        loads = " ".join(_read(f"a{q}", f"t0 + {q * row_size + p * lanes}") for q in range(4))
        w, v = (total([f"{c}{q} * a{q}" for q in range(4)]) for c in "cr")
        lines.append(f"V w{p}, {rate}{p}; {{ {loads} w{p} = {w}; {rate}{p} = {v}; }}")
    return "\n        ".join(lines)


def _slope_lines(paths: Sequence[Path], places: list[list[list[int | None]]], kinds: bool) -> list[str]:
    """Return the statements of one pair and one block of `slope`."""
    lines = []
    for p, path in enumerate(paths):
        _, i, o = path.orders
        lines.append("{ V dw = ZERO;")
        for a, row in enumerate(places[p]):
            terms = [f"z[{place}][k] * g{o * o + b}" for b, place in enumerate(row) if place is not None]
            if not terms:
                continue
            product = f"w{p}" if kinds else f"w{p} * x{i * i + a}"
            lines.append(f"{{ const V h = {total(terms)}, u = {product};")
            lines.append("dw += h;" if kinds else f"dw += x{i * i + a} * h; dx{i * i + a} += w{p} * h;")
            lines.extend(f"s{place} += u * g{o * o + b};" for b, place in enumerate(row) if place is not None)
            lines.append("}")
        lines.append(f"place += dw * v{p}; }}")
    return lines


def _curve_lines(paths: Sequence[Path], places: list[list[list[int | None]]], kinds: bool) -> list[str]:
    """Return the statements of one pair and one block of `curve`."""
    lines = []
    for p, path in enumerate(paths):
        _, i, o = path.orders
        lines.append(f"V da{p} = ZERO, db{p} = ZERO; {{")
        for b in range(2 * o + 1):
            column = [(a, row[b]) for a, row in enumerate(places[p]) if row[b] is not None]
            if not column:
                continue
            g, out = f"g{o * o + b}", f"out{o * o + b}"
            if kinds:
                ((_, place),) = column
                lines.append(f"{out} += w{p} * zt[{place}][k] + v{p} * z[{place}][k];")
                lines.append(f"da{p} += {g} * zt[{place}][k]; db{p} += {g} * z[{place}][k];")
                continue
            still = total([f"z[{place}][k] * x{i * i + a}" for a, place in column])
            moving = total([f"z[{place}][k] * a{i * i + a} + zt[{place}][k] * x{i * i + a}" for a, place in column])
            lines.append(f"{{ const V still = {still}, moving = {moving};")
            lines.append(f"{out} += w{p} * moving + v{p} * still; da{p} += {g} * moving; db{p} += {g} * still; }}")
        if not kinds:
            for a, row in enumerate(places[p]):
                found = [(b, place) for b, place in enumerate(row) if place is not None]
                if found:
                    still = total([f"z[{place}][k] * g{o * o + b}" for b, place in found])
                    moving = total([f"zt[{place}][k] * g{o * o + b}" for b, place in found])
                    lines.append(f"dx{i * i + a} += v{p} * ({still}) + w{p} * ({moving});")
        lines.append("}")
    return lines
