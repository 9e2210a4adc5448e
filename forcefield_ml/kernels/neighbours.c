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
