/* Neighbours of each row among its candidates, at the present positions.

   Row r's candidates are partners[k], images[k] for k from starts[r] to starts[r + 1]; the vector to one is
   x[partner] + shifts[image] - x[r], formed in double precision, written in single. Places of a row are filled from
   the front, in the candidates' order; the rest has mask 0, index 0 and a zero vector. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    double *squared;  /* distance squared */
    float *vectors;   /* 3 planes, one per component */
    uint32_t *bits;   /* of the distance squared in single precision: sorts as the number does */
    int32_t *chosen;
    int64_t size;
} Scratch;

static Scratch make_scratch(int64_t longest)
{
    Scratch s;
    s.size = (longest + 16) / 16 * 16;
    s.squared = malloc((size_t)s.size * (sizeof(double) + 3 * sizeof(float) + sizeof(uint32_t) + sizeof(int32_t)));
    if (!s.squared)
        abort();
    s.vectors = (float *)(s.squared + s.size);
    s.bits = (uint32_t *)(s.vectors + 3 * s.size);
    s.chosen = (int32_t *)(s.bits + s.size);
    return s;
}

static int64_t longest_row(int64_t n_rows, const int64_t *starts)
{
    int64_t longest = 0;
    for (int64_t r = 0; r < n_rows; ++r)
        if (starts[r + 1] - starts[r] > longest)
            longest = starts[r + 1] - starts[r];
    return longest;
}

static void measure(int64_t row, int64_t n, const int32_t *partners, const uint8_t *images, const double *shifts,
                    const double *x, Scratch s)
{
    const double a = x[3 * row], b = x[3 * row + 1], c = x[3 * row + 2];
    double *restrict squared = s.squared;
    float *restrict u = s.vectors, *restrict v = u + s.size, *restrict w = v + s.size;
    for (int64_t k = 0; k < n; ++k) {
        const double *p = x + 3 * (int64_t)partners[k], *t = shifts + 3 * (int)images[k];
        const double d = p[0] + t[0] - a, e = p[1] + t[1] - b, f = p[2] + t[2] - c;
        squared[k] = d * d + e * e + f * f;
        u[k] = (float)d;
        v[k] = (float)e;
        w[k] = (float)f;
    }
}

static void write_row(int64_t count, int64_t width, const int32_t *partners, Scratch s, int64_t *restrict indices,
                      float *restrict vectors, uint8_t *restrict mask)
{
    if (width == 0) /* at first, when rows are only counted */
        return;
    for (int64_t p = 0; p < count; ++p) {
        const int32_t k = s.chosen[p];
        indices[p] = partners[k];
        vectors[3 * p] = s.vectors[k];
        vectors[3 * p + 1] = s.vectors[k + s.size];
        vectors[3 * p + 2] = s.vectors[k + 2 * s.size];
    }
    memset(indices + count, 0, (size_t)(width - count) * sizeof *indices);
    memset(vectors + 3 * count, 0, (size_t)(width - count) * 3 * sizeof *vectors);
    memset(mask, 1, (size_t)count);
    memset(mask + count, 0, (size_t)(width - count));
}

/* Candidates nearer than the cutoff. Returns the longest row's number of neighbours; if that is more than width, what
   is written is incomplete. */
int64_t refresh_cutoff(int64_t n_rows, const int64_t *starts, const int32_t *partners, const uint8_t *images,
                       const double *shifts, const double *x, double cutoff, int64_t width, int64_t *indices,
                       float *vectors, uint8_t *mask)
{
    const int64_t room = longest_row(n_rows, starts);
    const double limit = cutoff * cutoff;
    int64_t longest = 0;
#pragma omp parallel reduction(max : longest)
    {
        Scratch s = make_scratch(room);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < n_rows; ++r) {
            const int64_t first = starts[r], n = starts[r + 1] - first;
            measure(r, n, partners + first, images + first, shifts, x, s);
            int64_t count = 0;
            for (int64_t k = 0; k < n; ++k) { /* without a branch: which candidates are near is hard to foretell */
                s.chosen[count] = (int32_t)k;
                count += s.squared[k] < limit;
            }
            longest = count > longest ? count : longest;
            write_row(count < width ? count : width, width, partners + first, s, indices + r * width,
                      vectors + 3 * r * width, mask + r * width);
        }
        free(s.squared);
    }
    return longest;
}

static int64_t count_up_to(int64_t n, const uint32_t *bits, uint32_t limit)
{
    int32_t count = 0;
    for (int64_t k = 0; k < n; ++k)
        count += bits[k] <= limit;
    return count;
}

/* Choose the `wanted` smallest of more: bisection on the bits in single precision, then, among those that single
   precision cannot tell apart, by double precision, the first of equals. */
static void choose_nearest(int64_t n, int64_t wanted, Scratch s)
{
    uint32_t low = UINT32_MAX, high = 0; /* at most high: at least wanted */
    for (int64_t k = 0; k < n; ++k) {
        const float single = (float)s.squared[k];
        uint32_t bits;
        memcpy(&bits, &single, sizeof bits);
        s.bits[k] = bits;
        low = bits < low ? bits : low;
        high = bits > high ? bits : high;
    }
    int64_t within = n;
    while (low < high && within != wanted) {
        const uint32_t middle = low + (high - low) / 2;
        const int64_t count = count_up_to(n, s.bits, middle);
        if (count >= wanted) {
            high = middle;
            within = count;
        } else {
            low = middle + 1;
        }
    }
    for (; within > wanted; --within) { /* drop the farthest of those at high, the last of equals */
        int64_t farthest = -1;
        for (int64_t k = 0; k < n; ++k)
            if (s.bits[k] == high && (farthest < 0 || s.squared[k] >= s.squared[farthest]))
                farthest = k;
        s.bits[farthest] = UINT32_MAX;
    }
    int64_t count = 0;
    for (int64_t k = 0; k < n; ++k) {
        s.chosen[count] = (int32_t)k;
        count += s.bits[k] <= high;
    }
}

/* The width nearest candidates, all where there are not more. reached[r]: distance of the farthest of them. */
void refresh_nearest(int64_t n_rows, const int64_t *starts, const int32_t *partners, const uint8_t *images,
                     const double *shifts, const double *x, int64_t width, int64_t *indices, float *vectors,
                     uint8_t *mask, double *reached)
{
    const int64_t room = longest_row(n_rows, starts);
#pragma omp parallel
    {
        Scratch s = make_scratch(room);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < n_rows; ++r) {
            const int64_t first = starts[r], n = starts[r + 1] - first, count = n < width ? n : width;
            measure(r, n, partners + first, images + first, shifts, x, s);
            if (n > width)
                choose_nearest(n, width, s);
            else
                for (int64_t k = 0; k < n; ++k)
                    s.chosen[k] = (int32_t)k;
            double farthest = 0.0;
            for (int64_t p = 0; p < count; ++p)
                farthest = s.squared[s.chosen[p]] > farthest ? s.squared[s.chosen[p]] : farthest;
            reached[r] = sqrt(farthest);
            write_row(count, width, partners + first, s, indices + r * width, vectors + 3 * r * width,
                      mask + r * width);
        }
        free(s.squared);
    }
}

/* Cells along the box vectors, or along the axes from `origin` where there is no box, with the atoms sorted by cell. */
typedef struct {
    const double *positions, *origin, *inverse, *shifts; /* the caller keeps them */
    int periodic;
    int64_t n[3];       /* cells along each vector */
    double height[3];   /* nm, of a cell */
    int64_t *first;     /* where each cell's atoms begin, and where the last one's end */
    int32_t *atoms;
    double *x, *y, *z;  /* of the sorted atoms */
} Cells;

static int64_t cell_along(const Cells *c, int axis, const double *p)
{
    double f = 0.0;
    for (int k = 0; k < 3; ++k)
        f += (p[k] - c->origin[k]) * c->inverse[3 * k + axis];
    const int64_t cell = (int64_t)floor(f * (double)c->n[axis]);
    return cell < 0 ? 0 : cell >= c->n[axis] ? c->n[axis] - 1 : cell;
}

/* Where the system is periodic every atom must lie in the box. */
void *make_grid(int64_t n_atoms, const double *x, const double *origin, const double *inverse, const double *heights,
                const double *shifts, int64_t periodic, double radius)
{
    Cells *grid = malloc(sizeof *grid);
    if (!grid)
        abort();
    Cells c = {.positions = x, .origin = origin, .inverse = inverse, .shifts = shifts, .periodic = periodic != 0};
    for (int axis = 0; axis < 3; ++axis) {
        const double most = floor(heights[axis] / (radius * (1.0 + 1e-9)));
        c.n[axis] = most < 1.0 ? 1 : most > 1048576.0 ? 1048576 : (int64_t)most;
    }
    for (;;) { /* not many more cells than atoms, however far they are apart */
        int widest = 0;
        for (int axis = 1; axis < 3; ++axis)
            if (c.n[axis] > c.n[widest])
                widest = axis;
        if ((double)c.n[0] * (double)c.n[1] * (double)c.n[2] <= 2.0 * (double)n_atoms + 64.0)
            break;
        c.n[widest] = (c.n[widest] + 1) / 2;
    }
    const int64_t n_cells = c.n[0] * c.n[1] * c.n[2];
    c.first = calloc((size_t)n_cells + 2, sizeof *c.first);
    c.atoms = malloc((size_t)n_atoms * sizeof *c.atoms);
    c.x = malloc(3 * (size_t)n_atoms * sizeof *c.x);
    int32_t *cell = malloc((size_t)n_atoms * sizeof *cell);
    if (!c.first || !c.atoms || !c.x || !cell)
        abort();
    c.y = c.x + n_atoms;
    c.z = c.y + n_atoms;
    for (int axis = 0; axis < 3; ++axis)
        c.height[axis] = heights[axis] / (double)c.n[axis];
    for (int64_t i = 0; i < n_atoms; ++i) {
        int64_t at = 0;
        for (int axis = 0; axis < 3; ++axis)
            at = at * c.n[axis] + cell_along(&c, axis, x + 3 * i);
        cell[i] = (int32_t)at;
        ++c.first[at + 2];
    }
    for (int64_t k = 2; k < n_cells + 2; ++k)
        c.first[k] += c.first[k - 1];
    for (int64_t i = 0; i < n_atoms; ++i) {
        const int64_t place = c.first[cell[i] + 1]++;
        c.atoms[place] = (int32_t)i;
        c.x[place] = x[3 * i];
        c.y[place] = x[3 * i + 1];
        c.z[place] = x[3 * i + 2];
    }
    free(cell);
    *grid = c;
    return grid;
}

void free_grid(void *grid)
{
    const Cells *c = grid;
    free(c->first);
    free(c->atoms);
    free(c->x);
    free(grid);
}

/* Count the atoms within a radius of an atom; write them too, unless partners is null. */
static int64_t search_row(const Cells *c, int64_t atom, double radius, int32_t *partners, uint8_t *images)
{
    const double *p = c->positions + 3 * atom, *shifts = c->shifts;
    enum { BLOCK = 256 };
    int64_t at[3], low[3], high[3], found = 0;
    for (int axis = 0; axis < 3; ++axis) {
        const double reach = ceil(radius * (1.0 + 1e-9) / c->height[axis]);
        const int64_t cells = reach < (double)c->n[axis] ? (int64_t)reach : c->n[axis];
        at[axis] = cell_along(c, axis, p);
        low[axis] = at[axis] - cells;
        high[axis] = at[axis] + cells;
        if (!c->periodic) {
            low[axis] = low[axis] < 0 ? 0 : low[axis];
            high[axis] = high[axis] >= c->n[axis] ? c->n[axis] - 1 : high[axis];
        }
    }
    for (int64_t a = low[0]; a <= high[0]; ++a) {
        const int64_t sa = a < 0 ? -1 : a >= c->n[0];
        for (int64_t b = low[1]; b <= high[1]; ++b) {
            const int64_t sb = b < 0 ? -1 : b >= c->n[1];
            const int64_t column = ((a - sa * c->n[0]) * c->n[1] + b - sb * c->n[1]) * c->n[2];
            for (int64_t sc = -1; sc <= 1; ++sc) { /* the cells of one image of a column are a run in memory */
                const int64_t from = low[2] > sc * c->n[2] ? low[2] : sc * c->n[2];
                const int64_t to = high[2] < (sc + 1) * c->n[2] - 1 ? high[2] : (sc + 1) * c->n[2] - 1;
                if (from > to)
                    continue;
                const int image = (int)(9 * (sa + 1) + 3 * (sb + 1) + sc + 1);
                const double u = shifts[3 * image] - p[0], v = shifts[3 * image + 1] - p[1],
                             w = shifts[3 * image + 2] - p[2];
                const int32_t self = image == 13 ? (int32_t)atom : -1;
                const int64_t end = c->first[column + to - sc * c->n[2] + 1];
                for (int64_t k = c->first[column + from - sc * c->n[2]]; k < end; k += BLOCK) {
                    const int64_t n = end - k < BLOCK ? end - k : BLOCK;
                    const int32_t *atoms = c->atoms + k;
                    int32_t near[BLOCK], count = 0;
                    for (int64_t m = 0; m < n; ++m) {
                        const double d = c->x[k + m] + u, e = c->y[k + m] + v, f = c->z[k + m] + w;
                        near[m] = (d * d + e * e + f * f < radius * radius) & (atoms[m] != self);
                        count += near[m];
                    }
                    if (partners && count) {
                        int32_t chosen[BLOCK + 1];
                        int64_t place = 0;
                        for (int64_t m = 0; m < n; ++m) {
                            chosen[place] = atoms[m];
                            place += near[m];
                        }
                        memcpy(partners + found, chosen, (size_t)count * sizeof *chosen);
                        memset(images + found, image, (size_t)count);
                    }
                    found += count;
                }
            }
        }
    }
    return found;
}

/* All pairs of some atoms closer than the row's radius, in two calls: with partners null the rows' lengths are counted
   into starts; then partners and images have starts[n_rows] places and are filled. In a periodic system no radius may be
   larger than half a height of the box. */
void search_grid(const void *grid, int64_t n_rows, const int64_t *rows, const double *radii, int64_t *starts,
                 int32_t *partners, uint8_t *images)
{
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < n_rows; ++r) {
        const int64_t count = search_row(grid, rows[r], radii[r], partners ? partners + starts[r] : NULL,
                                         partners ? images + starts[r] : NULL);
        if (!partners)
            starts[r + 1] = count;
    }
    if (!partners) {
        starts[0] = 0;
        for (int64_t r = 0; r < n_rows; ++r)
            starts[r + 1] += starts[r];
    }
}
