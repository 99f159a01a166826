/* Kernels of multigrid by aggregation for matrices of small dense blocks, one block row a node.

   Rows are compressed: the blocks of row i are start[i] .. start[i + 1] - 1, in columns col[k] in ascending order, and a
   block lies row by row in memory. A fine node has s unknowns, an aggregate m. The cycle reads matrices in single precision
   and computes in double: so it is symmetric to the rounding of the latter. Functions that make a pattern are called twice: without columns they count. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned char Flag;
#define INLINE static inline __attribute__((always_inline))
#define LARGEST 8 /* unknowns a node */

/* The block sizes that are compiled apart, with all loops over them unrolled. */
#define PAIRS(CASE) CASE(1, 1) CASE(2, 2) CASE(2, 3) CASE(3, 3) CASE(3, 6) CASE(6, 6)

/* --- set-up ------------------------------------------------------------------------------------------------------- */

/* out[k] = Frobenius norm of block k */
void norms(long blocks, int s, const double *a, double *out)
{
    for (long k = 0; k < blocks; ++k) {
        double sum = 0;
        for (int q = 0; q < s * s; ++q) sum += a[k * s * s + q] * a[k * s * s + q];
        out[k] = sqrt(sum);
    }
}

/* where[i] = the diagonal block of row i, and its inverse. An unknown that stands for nothing, as of an aggregate with
   few nodes, gets a one. Returns 0, or 1 + the first row whose diagonal block is missing or not positive definite. */
int invert_diagonal(int n, int s, const int *start, const int *col, double *a, int *where, double *inverse)
{
    for (int i = 0; i < n; ++i) {
        int k = start[i];
        while (k < start[i + 1] && col[k] != i) ++k;
        if (k == start[i + 1]) return 1 + i;
        where[i] = k;
        double *x = a + (long)k * s * s, *z = inverse + (long)i * s * s, w[LARGEST * LARGEST];
        for (int r = 0; r < s; ++r)
            if (x[r * s + r] == 0) x[r * s + r] = 1;
        memcpy(w, x, sizeof(double) * s * s);
        for (int r = 0; r < s; ++r)
            for (int q = 0; q < s; ++q) z[r * s + q] = r == q;
        for (int r = 0; r < s; ++r) {
            const double pivot = w[r * s + r];
            if (!(pivot > 1e-14 * x[r * s + r])) return 1 + i;
            for (int q = 0; q < s; ++q) { w[r * s + q] /= pivot; z[r * s + q] /= pivot; }
            for (int t = 0; t < s; ++t) {
                const double factor = w[t * s + r];
                if (t == r) continue;
                for (int q = 0; q < s; ++q) { w[t * s + q] -= factor * w[r * s + q]; z[t * s + q] -= factor * z[r * s + q]; }
            }
        }
    }
    return 0;
}

void multiply(int n, int s, const int *start, const int *col, const double *a, const double *x, double *y)
{
    for (int i = 0; i < n; ++i) {
        double sum[LARGEST] = {0};
        for (int k = start[i]; k < start[i + 1]; ++k)
            for (int r = 0; r < s; ++r)
                for (int q = 0; q < s; ++q) sum[r] += a[(long)k * s * s + r * s + q] * x[(long)col[k] * s + q];
        for (int r = 0; r < s; ++r) y[(long)i * s + r] = sum[r];
    }
}

/* Aggregates of strongly coupled nodes (size >= threshold * geometric mean of those of the diagonal): whole
   neighbourhoods first, then the nodes beside them, each to the strongest neighbour's, then what is left. Nodes without
   strong neighbours are in none, -1. Returns the number of aggregates.

   Vanek, Mandel and Brezina, Algebraic multigrid by smoothed aggregation, Computing 56 (1996). */
int aggregate(int n, const int *start, const int *col, const int *where, const double *size, double threshold,
              int *of_node)
{
    int count = 0;
    Flag *strong = malloc(start[n] ? start[n] : 1);
    for (int i = 0; i < n; ++i) {
        of_node[i] = -1;
        for (int k = start[i]; k < start[i + 1]; ++k)
            strong[k] = col[k] != i
                        && size[k] * size[k] >= threshold * threshold * size[where[i]] * size[where[col[k]]];
    }
    for (int i = 0; i < n; ++i) {
        int neighbours = 0, is_free = of_node[i] < 0;
        for (int k = start[i]; k < start[i + 1] && is_free; ++k)
            if (strong[k]) { ++neighbours; is_free = of_node[col[k]] < 0; }
        if (!is_free || !neighbours) continue;
        of_node[i] = count;
        for (int k = start[i]; k < start[i + 1]; ++k)
            if (strong[k]) of_node[col[k]] = count;
        ++count;
    }
    for (int i = 0; i < n; ++i) {
        double most = 0;
        if (of_node[i] >= 0) continue;
        for (int k = start[i]; k < start[i + 1]; ++k)
            if (strong[k] && of_node[col[k]] >= 0 && size[k] > most) { most = size[k]; of_node[i] = -2 - of_node[col[k]]; }
    }
    for (int i = 0; i < n; ++i)
        if (of_node[i] < -1) of_node[i] = -2 - of_node[i];
    for (int i = 0; i < n; ++i) {
        int neighbours = 0;
        if (of_node[i] >= 0) continue;
        for (int k = start[i]; k < start[i + 1]; ++k) neighbours += strong[k];
        if (!neighbours) continue;
        of_node[i] = count;
        for (int k = start[i]; k < start[i + 1]; ++k)
            if (strong[k] && of_node[col[k]] < 0) of_node[col[k]] = count;
        ++count;
    }
    free(strong);
    return count;
}

/* Orthonormal columns in each aggregate that span the m near-nullspace vectors there: T is n x s x m, the vectors' coarse
   values are count x m x m. What is dependent becomes a column of zeros. */
void tentative(int n, int s, int m, int count, const int *of_node, const double *near, double *T, double *coarse)
{
    const long size = (long)s * m;
    int *start = calloc(count + 2, sizeof(int)), *member = malloc((n + 1) * sizeof(int));
    for (int i = 0; i < n; ++i)
        if (of_node[i] >= 0) ++start[of_node[i] + 2];
    for (int c = 0; c < count; ++c) start[c + 2] += start[c + 1];
    for (int i = 0; i < n; ++i)
        if (of_node[i] >= 0) member[start[of_node[i] + 1]++] = i;
    memset(coarse, 0, sizeof(double) * count * m * m);
    for (int i = 0; i < n; ++i)
        for (int q = 0; q < size; ++q) T[i * size + q] = of_node[i] < 0 ? 0 : near[i * size + q];
#define EACH_ROW(t) \
    for (int e = start[c]; e < start[c + 1]; ++e) \
        for (double *t = T + member[e] * size, *end = t + size; t < end; t += m)
    for (int c = 0; c < count; ++c)
        for (int q = 0; q < m; ++q) {
            double *R = coarse + (long)c * m * m, before = 0, after = 0;
            EACH_ROW(t) before += t[q] * t[q];
            for (int p = 0; p < q; ++p) {
                double dot = 0;
                EACH_ROW(t) dot += t[p] * t[q];
                EACH_ROW(t) t[q] -= dot * t[p];
                R[p * m + q] = dot;
            }
            EACH_ROW(t) after += t[q] * t[q];
            if (!(after > 1e-20 * before)) after = 0;
            R[q * m + q] = sqrt(after);
            EACH_ROW(t) t[q] = after > 0 ? t[q] / R[q * m + q] : 0;
        }
    free(start);
    free(member);
}

/* Rows and columns of T - omega D^-1 A T: to a node belong the aggregates of its neighbours. Returns the entries. */
long pattern(int n, int count, const int *start, const int *col, const int *of_node, int *pstart, int *pcol)
{
    int *seen = malloc((count + 1) * sizeof(int));
    long used = 0;
    for (int c = 0; c < count; ++c) seen[c] = -1;
    for (int i = 0; i < n; ++i) {
        pstart[i] = used;
        for (int k = start[i]; k < start[i + 1]; ++k) {
            const int c = of_node[col[k]];
            if (c < 0 || seen[c] == i) continue;
            seen[c] = i;
            if (pcol) pcol[used] = c;
            ++used;
        }
    }
    pstart[n] = used;
    free(seen);
    return used;
}

/* p = T - omega D^-1 A T */
void smooth(int n, int s, int m, int count, const int *start, const int *col, const double *a, const double *inverse,
            double omega, const int *of_node, const double *T, const int *pstart, const int *pcol, double *p)
{
    const long size = (long)s * m;
    int *place = malloc((count + 1) * sizeof(int));
    memset(p, 0, sizeof(double) * pstart[n] * size);
    for (int i = 0; i < n; ++i) {
        for (int e = pstart[i]; e < pstart[i + 1]; ++e) place[pcol[e]] = e;
        for (int k = start[i]; k < start[i + 1]; ++k) {
            if (of_node[col[k]] < 0) continue;
            double *out = p + place[of_node[col[k]]] * size;
            const double *x = a + (long)k * s * s, *t = T + col[k] * size;
            for (int r = 0; r < s; ++r)
                for (int q = 0; q < s; ++q)
                    for (int l = 0; l < m; ++l) out[r * m + l] += x[r * s + q] * t[q * m + l];
        }
        for (int e = pstart[i]; e < pstart[i + 1]; ++e) {
            double *out = p + e * size, step[LARGEST * LARGEST] = {0};
            for (int r = 0; r < s; ++r)
                for (int q = 0; q < s; ++q)
                    for (int l = 0; l < m; ++l) step[r * m + l] += inverse[((long)i * s + r) * s + q] * out[q * m + l];
            for (int q = 0; q < size; ++q) out[q] = (pcol[e] == of_node[i] ? T[i * size + q] : 0) - omega * step[q];
        }
    }
    free(place);
}

INLINE long product_(int n, const int s, const int m, int count, const int *start, const int *col, const double *a,
                     const int *pstart, const int *pcol, const double *p, int *cstart, int *ccol, double *c)
{
    int *place = malloc((count + 1) * sizeof(int));
    long used = 0;
    for (int q = 0; q < count; ++q) place[q] = -1;
    for (int i = 0; i < n; ++i) {
        const long first = used;
        cstart[i] = used;
        for (int k = start[i]; k < start[i + 1]; ++k)
            for (int e = pstart[col[k]]; e < pstart[col[k] + 1]; ++e) {
                long at = place[pcol[e]];
                if (at < first) {
                    at = place[pcol[e]] = used++;
                    if (ccol) { ccol[at] = pcol[e]; memset(c + at * s * m, 0, sizeof(double) * s * m); }
                }
                if (!ccol) continue;
                const double *x = a + (long)k * s * s, *y = p + (long)e * s * m;
                double *z = c + at * s * m;
                for (int r = 0; r < s; ++r)
                    for (int q = 0; q < s; ++q)
                        for (int l = 0; l < m; ++l) z[r * m + l] += x[r * s + q] * y[q * m + l];
            }
    }
    cstart[n] = used;
    free(place);
    return used;
}

/* C = A P, columns in any order. Returns the entries. */
long product(int n, int s, int m, int count, const int *start, const int *col, const double *a, const int *pstart,
             const int *pcol, const double *p, int *cstart, int *ccol, double *c)
{
#define CASE(S, M) \
    if (s == S && m == M) return product_(n, S, M, count, start, col, a, pstart, pcol, p, cstart, ccol, c);
    PAIRS(CASE)
#undef CASE
    return product_(n, s, m, count, start, col, a, pstart, pcol, p, cstart, ccol, c);
}

/* For each aggregate the nodes that take values from it, and the places of these entries. */
void transpose(int n, int count, const int *pstart, const int *pcol, int *tstart, int *trow, int *tentry)
{
    int *next = calloc(count + 1, sizeof(int));
    memset(tstart, 0, (count + 1) * sizeof(int));
    for (int e = 0; e < pstart[n]; ++e) ++tstart[pcol[e] + 1];
    for (int c = 0; c < count; ++c) { next[c] = tstart[c]; tstart[c + 1] += tstart[c]; }
    for (int i = 0; i < n; ++i)
        for (int e = pstart[i]; e < pstart[i + 1]; ++e) { trow[next[pcol[e]]] = i; tentry[next[pcol[e]]++] = e; }
    free(next);
}

static int ascending(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

INLINE long galerkin_(int count, const int s, const int m, const int *tstart, const int *trow, const int *tentry,
                      const double *p, const int *cstart, const int *ccol, const double *c, int *dstart, int *dcol,
                      double *d)
{
    int *place = malloc((count + 1) * sizeof(int));
    long used = 0;
    for (int q = 0; q < count; ++q) place[q] = -1;
    for (int I = 0; I < count; ++I) {
        const long first = used;
        dstart[I] = used;
        for (int t = tstart[I]; t < tstart[I + 1]; ++t)
            for (int k = cstart[trow[t]]; k < cstart[trow[t] + 1]; ++k)
                if (place[ccol[k]] < first) {
                    place[ccol[k]] = used;
                    if (dcol) dcol[used] = ccol[k];
                    ++used;
                }
        if (!dcol) continue;
        qsort(dcol + first, used - first, sizeof(int), ascending);
        for (long q = first; q < used; ++q) place[dcol[q]] = q;
        memset(d + first * m * m, 0, sizeof(double) * (used - first) * m * m);
        for (int t = tstart[I]; t < tstart[I + 1]; ++t) {
            const double *x = p + (long)tentry[t] * s * m;
            for (int k = cstart[trow[t]]; k < cstart[trow[t] + 1]; ++k) {
                const double *y = c + (long)k * s * m;
                double *z = d + (long)place[ccol[k]] * m * m;
                for (int r = 0; r < s; ++r)
                    for (int q = 0; q < m; ++q)
                        for (int l = 0; l < m; ++l) z[q * m + l] += x[r * m + q] * y[r * m + l];
            }
        }
    }
    dstart[count] = used;
    free(place);
    return used;
}

/* D = P^T C. Returns the entries. */
long galerkin(int s, int m, int count, const int *tstart, const int *trow, const int *tentry, const double *p,
              const int *cstart, const int *ccol, const double *c, int *dstart, int *dcol, double *d)
{
#define CASE(S, M) \
    if (s == S && m == M) return galerkin_(count, S, M, tstart, trow, tentry, p, cstart, ccol, c, dstart, dcol, d);
    PAIRS(CASE)
#undef CASE
    return galerkin_(count, s, m, tstart, trow, tentry, p, cstart, ccol, c, dstart, dcol, d);
}

/* out = a in single precision, where blocks (i, j) and (j, i) are each other's transpose exactly. */
void shorten(int n, int s, const int *start, const int *col, const int *where, const double *a, float *out)
{
    int *next = malloc((n + 1) * sizeof(int));
    for (int i = 0; i < n; ++i) next[i] = where[i] + 1;
    for (int i = 0; i < n; ++i)
        for (int k = start[i]; k < start[i + 1]; ++k) {
            const int j = col[k], is_mirrored = j < i && next[j] < start[j + 1] && col[next[j]] == i;
            const double *x = a + (long)(is_mirrored ? next[j]++ : k) * s * s;
            for (int r = 0; r < s; ++r)
                for (int q = 0; q < s; ++q)
                    out[(long)k * s * s + r * s + q] = is_mirrored || (j == i && q < r) ? x[q * s + r] : x[r * s + q];
        }
    free(next);
}

/* --- cycle -------------------------------------------------------------------------------------------------------- */

/* Of n nodes with s unknowns; its coarse level has `count` nodes with m. b and x are right-hand side and solution. */
typedef struct {
    int n, s, m, count;
    const int *start, *col, *where, *pstart, *pcol;
    const float *a, *inverse, *p;
    double *b, *x;
} Level;

INLINE void add(const int s, const int m, const float *x, const double *v, double *sum)
{
    for (int r = 0; r < s; ++r)
        for (int q = 0; q < m; ++q) sum[r] += x[r * m + q] * v[q];
}

/* x_i = D_i^-1 (b_i - sum) */
INLINE void relax(const Level *g, const int s, int i, const double *sum)
{
    double rest[LARGEST], found[LARGEST] = {0};
    for (int r = 0; r < s; ++r) rest[r] = g->b[(long)i * s + r] - sum[r];
    add(s, s, g->inverse + (long)i * s * s, rest, found);
    for (int r = 0; r < s; ++r) g->x[(long)i * s + r] = found[r];
}

/* From x = 0 a sweep forward, then what is left to the coarse level: b - A x = -U x, as (L + D) x = b. */
INLINE void descend_(const Level *g, const int s, const int m, double *coarse)
{
    for (int i = 0; i < g->n; ++i) {
        double sum[LARGEST] = {0};
        for (int k = g->start[i]; k < g->where[i]; ++k)
            add(s, s, g->a + (long)k * s * s, g->x + (long)g->col[k] * s, sum);
        relax(g, s, i, sum);
    }
    memset(coarse, 0, sizeof(double) * g->count * m);
    for (int i = 0; i < g->n; ++i) {
        double sum[LARGEST] = {0};
        for (int k = g->where[i] + 1; k < g->start[i + 1]; ++k)
            add(s, s, g->a + (long)k * s * s, g->x + (long)g->col[k] * s, sum);
        for (int e = g->pstart[i]; e < g->pstart[i + 1]; ++e) {
            const float *w = g->p + (long)e * s * m;
            double *out = coarse + (long)g->pcol[e] * m;
            for (int r = 0; r < s; ++r)
                for (int q = 0; q < m; ++q) out[q] -= w[r * m + q] * sum[r];
        }
    }
}

/* Adds what comes from the coarse level, then a sweep backward. */
INLINE void ascend_(const Level *g, const int s, const int m, const double *coarse)
{
    for (int i = 0; i < g->n; ++i)
        for (int e = g->pstart[i]; e < g->pstart[i + 1]; ++e)
            add(s, m, g->p + (long)e * s * m, coarse + (long)g->pcol[e] * m, g->x + (long)i * s);
    for (int i = g->n - 1; i >= 0; --i) {
        double sum[LARGEST] = {0};
        for (int k = g->start[i]; k < g->start[i + 1]; ++k)
            if (k != g->where[i]) add(s, s, g->a + (long)k * s * s, g->x + (long)g->col[k] * s, sum);
        relax(g, s, i, sum);
    }
}

static void descend(const Level *g, double *coarse)
{
#define CASE(S, M) if (g->s == S && g->m == M) { descend_(g, S, M, coarse); return; }
    PAIRS(CASE)
#undef CASE
    descend_(g, g->s, g->m, coarse);
}

static void ascend(const Level *g, const double *coarse)
{
#define CASE(S, M) if (g->s == S && g->m == M) { ascend_(g, S, M, coarse); return; }
    PAIRS(CASE)
#undef CASE
    ascend_(g, g->s, g->m, coarse);
}

/* x = one V-cycle's answer to b; `dense` is the inverse of the last of the levels. */
void cycle(const Level *levels, int count, const float *dense, const double *b, double *x)
{
    const Level *last = levels + count - 1;
    const long unknowns = (long)levels->n * levels->s, left = (long)last->n * last->s;
    memcpy(levels->b, b, unknowns * sizeof(double));
    for (const Level *g = levels; g < last; ++g) descend(g, g[1].b);
    for (long i = 0; i < left; ++i) {
        double sum = 0;
        for (long j = 0; j < left; ++j) sum += dense[i * left + j] * last->b[j];
        last->x[i] = sum;
    }
    for (const Level *g = last - 1; g >= levels; --g) ascend(g, g[1].x);
    memcpy(x, levels->x, unknowns * sizeof(double));
}
