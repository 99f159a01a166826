/* Kernels of multigrid on a lattice, compiled for one REAL (float or double) at a time.

   An array holds the points of a lattice of nz x ny x nx points (x fastest; nz = 1 in 2D) and a frame of one point on
   every side (none in z in 2D). Symmetric stencils are stored by halves: array h holds the coupling of a point p with
   p + o_h, where o_0 = 0 and o_1, o_2, ... are the lexicographically positive offsets: 5 arrays in 2D, 14 in 3D. The
   coupling with p - o_h is read as that of p - o_h with p. What leaves the lattice is zero. Arrays of one stencil
   follow each other in memory. Transfer stencils are whole: array k of 9 or 27 holds at the coarse point C the weight
   with which the fine point 2 C + o_k takes its value. */

#include <tgmath.h>
#include <string.h>

/* Bit h of `used` says whether array h of the stencils and of their factors has entries; hz is 0 in 2D and 1 in 3D. */
typedef struct { int nz, ny, nx, hz, used; } Lattice;

static int is_used(Lattice g, int h) { return g.used >> h & 1; }

static long row_length(Lattice g) { return g.nx + 2; }
static long plane_size(Lattice g) { return row_length(g) * (g.ny + 2); }
static long array_size(Lattice g) { return plane_size(g) * (g.nz + 2 * g.hz); }
static long place(Lattice g, int k, int j, int i) { return (k + g.hz) * plane_size(g) + (j + 1) * row_length(g) + i + 1; }
static long shift(Lattice g, const int *o) { return o[0] * plane_size(g) + o[1] * row_length(g) + o[2]; }

/* Number of half offset (dz, dy, dx), or -1 if it is not in the stencil's positive half. */
static int half_index(int dz, int dy, int dx)
{
    if (dz < 0 || dz > 1 || dy < -1 || dy > 1 || dx < -1 || dx > 1) return -1;
    if (dz == 0 && (dy < 0 || (dy == 0 && dx < 0))) return -1;
    if (dz == 0 && dy == 0) return dx;
    if (dz == 0) return 3 + dx;
    return 5 + 3 * (dy + 1) + dx + 1;
}

static int half_offsets(Lattice g, int (*o)[3])
{
    int count = 0;
    for (int dz = 0; dz <= g.hz; ++dz)
        for (int dy = -1; dy <= 1; ++dy)
            for (int dx = -1; dx <= 1; ++dx)
                if (half_index(dz, dy, dx) >= 0) { o[count][0] = dz; o[count][1] = dy; o[count][2] = dx; ++count; }
    return count;
}

/* Kernels go layer after layer of the slowest direction: rows in 2D, planes in 3D. */
static int number_of_layers(Lattice g) { return g.hz ? g.nz : g.ny; }
static int rows_per_layer(Lattice g) { return g.hz ? g.ny : 1; }

/* The place of the first point in row j of layer l. */
static long row_of_layer(Lattice g, int l, int j) { return g.hz ? place(g, l, j, 0) : place(g, 0, l, 0); }

/* Couplings of a point and the vector's entries that they meet: pointers for place 0. */
typedef struct { const REAL *a[26], *v[26]; int count; } Terms;

static void add_term(Terms *t, const REAL *a, const REAL *v) { t->a[t->count] = a; t->v[t->count++] = v; }

/* Points of a row that are computed at a time, in registers; the last ones of a row again, if they are not as many. */
#define WIDTH 8
typedef REAL Points __attribute__((vector_size(WIDTH * sizeof(REAL))));
#define INLINE static inline __attribute__((always_inline))
#define ROW_BY_ROW(part, n, ...) do { \
    if ((n) < WIDTH) part(n, 0, __VA_ARGS__); \
    else for (int i = 0; i < (n); i += WIDTH) part(WIDTH, i < (n) - WIDTH ? i : (n) - WIDTH, __VA_ARGS__); \
} while (0)

INLINE Points load(int width, const REAL *from)
{
    Points p = {0};
    memcpy(&p, from, width * sizeof(REAL));
    return p;
}

INLINE void store(int width, REAL *to, Points p) { memcpy(to, &p, width * sizeof(REAL)); }

INLINE void residual_part(int width, int i, long p, const Terms *t, const REAL *sums, const REAL *b, const REAL *x,
                          REAL *r)
{
    const long q = p + i;
    const Points u = load(width, x + q);
    Points sum = load(width, sums + q) * u;
    for (int k = 0; k < t->count; ++k) sum += load(width, t->a[k] + q) * (load(width, t->v[k] + q) - u);
    store(width, r + q, b ? load(width, b + q) - sum : sum);
}

/* r = b - A x; with b = NULL, r = A x. Not A's diagonal but its row sums enter, and differences of x: where strong
   couplings meet weak ones, or x is smooth, rounding then does no harm. On the layers from the first-th to before the
   last-th. */
void residual(Lattice g, int first, int last, const REAL *A, const REAL *sums, const REAL *b, const REAL *x, REAL *r)
{
    const long n = array_size(g);
    int o[14][3];
    const int count = half_offsets(g, o);
    Terms t = {.count = 0};
    for (int h = 1; h < count; ++h) {
        if (!is_used(g, h)) continue;
        const long to = shift(g, o[h]);
        add_term(&t, A + h * n, x + to);
        add_term(&t, A + h * n - to, x - to);
    }
    for (int l = first; l < last; ++l)
        for (int j = 0; j < rows_per_layer(g); ++j)
            ROW_BY_ROW(residual_part, g.nx, row_of_layer(g, l, j), &t, sums, b, x, r);
}

/* out = (r - sum of terms) / D, or r - (sum of terms) / D if `later`, and step = e / D. */
INLINE void sweep_part(int width, int i, long p, const Terms *t, int later, const REAL *inverse, const REAL *e,
                       const REAL *r, REAL *out, REAL *step)
{
    const long q = p + i;
    const Points w = load(width, inverse + q), given = load(width, r + q);
    Points sum = {0};
    for (int k = 0; k < t->count; ++k) sum += load(width, t->a[k] + q) * load(width, t->v[k] + q);
    store(width, step + i, w * load(width, e + q));
    store(width, out + i, later ? given - w * sum : w * (given - sum));
}

/* y = (D + L)^-1 r with M = (D + L) D^-1 (D + L^T), on the layers from the first-th to before the last-th.
   L^T has the arrays 1, 2, ... of the half stencil U; `inverse` holds 1 / D. Vector y may be r. */
void forward(Lattice g, int first, int last, const REAL *U, const REAL *inverse, const REAL *r, REAL *y)
{
    const long n = array_size(g);
    int o[14][3];
    const int count = half_offsets(g, o), nx = g.nx;
    Terms t = {.count = 0};
    for (int h = 2; h < count; ++h)
        if (is_used(g, h)) add_term(&t, U + h * n - shift(g, o[h]), y - shift(g, o[h]));
    REAL sum[nx], step[nx];
    for (int l = first; l < last; ++l)
        for (int j = 0; j < rows_per_layer(g); ++j) {
            const long p = row_of_layer(g, l, j);
            ROW_BY_ROW(sweep_part, nx, p, &t, 0, inverse, U + n - 1, r, sum, step);
            REAL former = 0;
            for (int i = 0; i < nx; ++i) y[p + i] = former = sum[i] - step[i] * former;
        }
}

/* z = (D + L^T)^-1 D y on the layers from before the last-th back to the first-th, and x += z unless x is NULL. Vector
   z may be y. */
void backward(Lattice g, int first, int last, const REAL *U, const REAL *inverse, const REAL *y, REAL *z,
              REAL *restrict x)
{
    const long n = array_size(g);
    int o[14][3];
    const int count = half_offsets(g, o), nx = g.nx;
    Terms t = {.count = 0};
    for (int h = 2; h < count; ++h)
        if (is_used(g, h)) add_term(&t, U + h * n, z + shift(g, o[h]));
    REAL sum[nx], step[nx];
    for (int l = last - 1; l >= first; --l)
        for (int j = rows_per_layer(g) - 1; j >= 0; --j) {
            const long p = row_of_layer(g, l, j);
            ROW_BY_ROW(sweep_part, nx, p, &t, 1, inverse, U + n, y, sum, step);
            REAL former = 0;
            for (int i = nx - 1; i >= 0; --i) z[p + i] = former = sum[i] - step[i] * former;
            if (x) for (int i = 0; i < nx; ++i) x[p + i] += z[p + i];
        }
}

/* What the layer eliminated last takes from the right-hand side of a layer behind it: out, of one layer with its frame
   (rows of nx + 2; ny + 2 of them in 3D, one in 2D), has to be zero. */
void hand_on(Lattice g, const REAL *U, const REAL *restrict y, REAL *restrict out)
{
    const long n = array_size(g);
    for (int j = 0; j < rows_per_layer(g); ++j) {
        const long p = row_of_layer(g, number_of_layers(g) - 1, j);
        for (int m = -g.hz; m <= g.hz; ++m) {
            const int first = g.hz ? 5 + 3 * (m + 1) : 2;
            const REAL *restrict a = U + first * n + p, *restrict c = a + n, *restrict f = c + n;
            REAL *restrict to = out + (g.hz ? (j + 1 + m) * row_length(g) : 0) + 1;
            for (int i = 0; i < g.nx; ++i) {
                to[i - 1] += a[i] * y[p + i];
                to[i] += c[i] * y[p + i];
                to[i + 1] += f[i] * y[p + i];
            }
        }
    }
}

/* What goes to two diagonal entries for the dropped entry -product between them: what is dropped of the other sign
   would make M smaller than A for smooth vectors, and its modulus on the diagonal does not act on them. */
static REAL lumped(REAL product, REAL keep) { return product > 0 ? keep * product : -product; }

/* Incomplete factors M = (D + L) D^-1 (D + L^T) of A, with another diagonal, on A's own pattern. Of each coupling that
   would leave the pattern something goes to the two diagonal entries, see `lumped`, as the eliminated point's `keep`
   says: with 1 its modulus, so that the factors exist for every positive definite A (Ajiz and Jennings 1984), and M - A
   is positive semidefinite. U may be A where elimination changes no coupling of the pattern. Returns how many pivots had
   to be replaced. */
long factorise(Lattice g, int first, int last, const REAL *A, const REAL *diagonal, const REAL *keep, REAL *U,
               REAL *inverse)
{
    const long n = array_size(g);
    int o[14][3];
    const int count = half_offsets(g, o);
    long s[14];
    /* Pairs (a, b), a < b: the point q couples p = q + o_a and p + o_h = q + o_b; h = -1 where the pattern has no h. */
    int pairs[91][3], total = 0;
    for (int a = 1; a < count; ++a) {
        s[a] = shift(g, o[a]);
        for (int b = a + 1; b < count; ++b) {
            const int h = half_index(o[b][0] - o[a][0], o[b][1] - o[a][1], o[b][2] - o[a][2]);
            if (!is_used(g, a) || !is_used(g, b)) continue;
            pairs[total][0] = a;
            pairs[total][1] = b;
            pairs[total++][2] = h >= 0 && is_used(g, h) ? h : -1;
        }
    }
    const int nx = g.nx;
    long replaced = 0;
    for (int l = first; l < last; ++l)
        for (int j = 0; j < rows_per_layer(g); ++j) {
            const long p = row_of_layer(g, l, j);
            if (U != A)
                for (int h = 1; h < count; ++h)
                    if (is_used(g, h)) memcpy(U + h * n + p, A + h * n + p, nx * sizeof(REAL));
            REAL pivot[nx], taken[nx];
            for (int i = 0; i < nx; ++i) { pivot[i] = diagonal[p + i]; taken[i] = 0; }
            for (int a = 2; a < count; ++a) {
                if (!is_used(g, a)) continue;
                const REAL *restrict u = U + a * n + p - s[a], *restrict w = inverse + p - s[a];
                for (int i = 0; i < nx; ++i) pivot[i] -= u[i] * (u[i] * w[i]);
            }
            for (int t = 0; t < total; ++t) {
                const int a = pairs[t][0], b = pairs[t][1], h = pairs[t][2];
                if (a > 1) {
                    const REAL *restrict u = U + a * n + p - s[a], *restrict v = U + b * n + p - s[a];
                    const REAL *restrict w = inverse + p - s[a];
                    const REAL *restrict kept = keep + p - s[a];
                    REAL *restrict out = h < 0 ? taken : U + h * n + p;
                    if (h >= 0) for (int i = 0; i < nx; ++i) out[i] -= u[i] * (v[i] * w[i]);
                    else for (int i = 0; i < nx; ++i) out[i] += lumped(u[i] * (v[i] * w[i]), kept[i]);
                }
                if (h < 0) {
                    const REAL *restrict u = U + a * n + p - s[b], *restrict v = U + b * n + p - s[b];
                    const REAL *restrict w = inverse + p - s[b], *restrict kept = keep + p - s[b];
                    for (int i = 0; i < nx; ++i) taken[i] += lumped(u[i] * (v[i] * w[i]), kept[i]);
                }
            }
            for (int i = 0; i < nx; ++i) pivot[i] += taken[i];
            /* What the left neighbour hands on, point after point. */
            for (int i = 0; i < nx; ++i) {
                if (i) {
                    const REAL w = inverse[p + i - 1], u = U[n + p + i - 1], share = u * w;
                    REAL dropped = 0;
                    pivot[i] -= u * share;
                    for (int t = 0; t < total && pairs[t][0] == 1; ++t) {
                        const REAL fill = share * U[pairs[t][1] * n + p + i - 1];
                        if (pairs[t][2] < 0) dropped += lumped(fill, keep[p + i - 1]);
                        else U[pairs[t][2] * n + p + i] -= fill;
                    }
                    pivot[i] += dropped;
                }
                if (!(pivot[i] > (REAL)1e-3 * diagonal[p + i])) { pivot[i] = diagonal[p + i]; ++replaced; }
                inverse[p + i] = 1 / pivot[i];
            }
        }
    return replaced;
}

/* keep(p) = tanh(c + sum_u v_u max(0, b_u + sum_k W_uk f_k(p))), a network of one hidden layer with weights W of shape
   (units, inputs): its inputs f(p) are the couplings of p with p + o_1, p + o_2, ... and then with p - o_1, ..., over
   the diagonal entry where that is positive, else zero. Points and units are taken in blocks that fit into registers;
   the number of units is a multiple of UNITS. */
#define POINTS (64 / (int)sizeof(REAL))
#define UNITS 8
typedef REAL Block __attribute__((vector_size(64)));
typedef __typeof__((Block){0} > (Block){0}) Mask;
void predict(Lattice g, int units, const REAL *A, const REAL *W, const REAL *b, const REAL *v, REAL c, REAL *keep)
{
    const long n = array_size(g);
    int o[14][3], number[26], inputs = 0;
    const int count = half_offsets(g, o), all = 2 * (count - 1);
    long from[26];
    for (int k = 0; k < all; ++k) {
        const int h = k % (count - 1) + 1;
        if (!is_used(g, h)) continue;
        number[inputs] = k;
        from[inputs++] = h * n - (k < count - 1 ? 0 : shift(g, o[h]));
    }
    for (int k = 0; k < g.nz; ++k)
        for (int j = 0; j < g.ny; ++j)
            for (int first = 0; first < g.nx; first += POINTS) {
                const long p = place(g, k, j, first);
                const int points = g.nx - first < POINTS ? g.nx - first : POINTS;
                Block scale = {0}, f[26], total = (Block){0} + c;
                for (int i = 0; i < points; ++i) scale[i] = A[p + i] > 0 ? 1 / A[p + i] : 0;
                for (int e = 0; e < inputs; ++e) {
                    f[e] = (Block){0};
                    memcpy(f + e, A + from[e] + p, points * sizeof(REAL));
                    f[e] *= scale;
                }
                for (int u = 0; u < units; u += UNITS) {
                    Block sum[UNITS];
                    for (int t = 0; t < UNITS; ++t) sum[t] = (Block){0} + b[u + t];
                    for (int e = 0; e < inputs; ++e)
                        for (int t = 0; t < UNITS; ++t) sum[t] += f[e] * W[(u + t) * all + number[e]];
                    for (int t = 0; t < UNITS; ++t) total += v[u + t] * (Block)((Mask)sum[t] & (sum[t] > 0));
                }
                for (int i = 0; i < points; ++i) keep[p + i] = tanh(total[i]);
            }
}

/* Where the point with the fine offset f from the fine image of a coarse point lies among points sorted by parity: those
   of one parity form an array of the coarse lattice's shape. */
static int parity(Lattice g, const int *f) { return ((f[0] & 1) * 2 + (f[1] & 1)) * 2 + (f[2] & 1); }
static long halved_shift(Lattice coarse, const int *f)
{
    /* Arithmetic shifts: -1 and -2 lie one coarse point before. */
    const int o[3] = {f[0] >> 1, f[1] >> 1, f[2] >> 1};
    return shift(coarse, o);
}

/* Sort arrays of stencils by parity: so the kernels of coarsening find in a row what they add. `sorted` takes 4 or 8
   arrays of the coarse shape for each array in use, one after another. */
void sort_by_parity(Lattice g, Lattice coarse, const REAL *A, REAL *sorted)
{
    const long n = array_size(g), m = array_size(coarse);
    for (int h = 0; h < (g.hz ? 14 : 5); ++h) {
        if (!is_used(g, h)) continue;
        for (int k = -g.hz; k < g.nz + g.hz; ++k)
            for (int j = -1; j <= g.ny; ++j) {
                const int f[3] = {k, j, 0}, at[3] = {k >> 1, j >> 1, 0};
                const REAL *restrict a = A + h * n + place(g, k, j, 0);
                REAL *restrict even = sorted + parity(g, f) * m + place(coarse, at[0], at[1], 0);
                REAL *restrict odd = even + m;
                odd[-1] = a[-1];
                for (int i = 0; i < g.nx / 2; ++i) { even[i] = a[2 * i]; odd[i] = a[2 * i + 1]; }
                even[g.nx / 2] = a[g.nx / 2 * 2];
                if (g.nx % 2) odd[g.nx / 2] = a[g.nx];
            }
        sorted += (g.hz ? 8 : 4) * m;
    }
}

/* What kernels of coarsening know of the fine stencils: for each of the 27 directions where the coupling in it is found
   among the sorted arrays; NULL where none is used. */
typedef struct { const REAL *array[27]; int offset[27][3], step[27][3], entries; } Couplings;

static Couplings find_couplings(Lattice g, Lattice coarse, const REAL *sorted)
{
    Couplings c = {.entries = 0};
    const long size = (g.hz ? 8 : 4) * array_size(coarse);
    for (int dz = -g.hz; dz <= g.hz; ++dz)
        for (int dy = -1; dy <= 1; ++dy)
            for (int dx = -1; dx <= 1; ++dx) {
                const int e = c.entries++;
                int h = half_index(dz, dy, dx);
                c.offset[e][0] = dz; c.offset[e][1] = dy; c.offset[e][2] = dx;
                for (int axis = 0; axis < 3; ++axis) c.step[e][axis] = h < 0 ? c.offset[e][axis] : 0;
                if (h < 0) h = half_index(-dz, -dy, -dx);
                int before = 0;
                for (int other = 0; other < h; ++other) before += is_used(g, other);
                c.array[e] = is_used(g, h) ? sorted + before * size : NULL;
            }
    return c;
}

/* The coupling in direction e of the fine points with offset f from the fine image of the coarse point at place 0. */
static const REAL *coupling(Lattice g, Lattice coarse, const Couplings *c, int e, const int *f)
{
    if (!c->array[e]) return NULL;
    const int q[3] = {f[0] + c->step[e][0], f[1] + c->step[e][1], f[2] + c->step[e][2]};
    return c->array[e] + parity(g, q) * array_size(coarse) + halved_shift(coarse, q);
}

/* out = the sum of arrays, or of their products with others. */
static void add_arrays(long n, int count, const REAL *const *a, REAL *restrict out)
{
    for (long i = 0; i < n; ++i) out[i] = 0;
    for (int t = 0; t < count; ++t) { const REAL *restrict v = a[t]; for (long i = 0; i < n; ++i) out[i] += v[i]; }
}

static void add_products(long n, int count, const REAL *const *a, const REAL *const *b, REAL *restrict out)
{
    long i = 0;
    for (; i + 4 * WIDTH <= n; i += 4 * WIDTH) {
        Points sum[4] = {0};
        for (int t = 0; t < count; ++t)
            for (int s = 0; s < 4; ++s)
                sum[s] += load(WIDTH, a[t] + i + s * WIDTH) * load(WIDTH, b[t] + i + s * WIDTH);
        for (int s = 0; s < 4; ++s) store(WIDTH, out + i + s * WIDTH, sum[s]);
    }
    for (; i < n; ++i) {
        REAL sum = 0;
        for (int t = 0; t < count; ++t) sum += a[t][i] * b[t][i];
        out[i] = sum;
    }
}

/* Zero what lies on the frame, before and behind each row of a layer. */
static void clear_frame(Lattice g, int k, REAL *a)
{
    for (int j = 0; j < g.ny; ++j) { a[place(g, k, j, -1)] = 0; a[place(g, k, j, g.nx)] = 0; }
}

/* Points of a layer that are coarsened at a time: all arrays that they need stay in the cache. */
#define BLOCK 512

/* The weights of operator-dependent interpolation: at a fine point the stencil, summed over the directions in which
   the point lies on the coarse lattice, is solved for the point (Dendy 1982, 3D: Dendy 1986). */
void weigh(Lattice g, Lattice coarse, const REAL *sorted, REAL *W)
{
    const long m = array_size(coarse);
    const Couplings c = find_couplings(g, coarse, sorted);
    const int entries = c.entries;
    int order[27], filled = 0;
    for (int odd = 0; odd <= 3; ++odd)
        for (int k = 0; k < entries; ++k)
            if ((c.offset[k][0] != 0) + (c.offset[k][1] != 0) + (c.offset[k][2] != 0) == odd) order[filled++] = k;
    /* For each fine point near a coarse one: the arrays to sum up for each parent, and the parents' weights. */
    const REAL *terms[27][8][27], *parents[27][8], *own[27];
    int number[27][8], parent_of[27][8], count[27];
    for (int t = 1; t < entries; ++t) {
        const int k = order[t], *f = c.offset[k];
        for (int which = 0; which < 8; ++which) number[t][which] = 0;
        for (int e = 0; e < entries; ++e) {
            /* Only what points at this parent, or not away along an odd direction, is needed. */
            int which = 0, wanted = 1;
            for (int axis = 0; axis < 3; ++axis) {
                if (!f[axis]) continue;
                if (c.offset[e][axis] == -f[axis]) which |= 1 << axis;
                else if (c.offset[e][axis] == f[axis]) wanted = 0;
            }
            const REAL *a = coupling(g, coarse, &c, e, f);
            if (wanted && a) terms[t][which][number[t][which]++] = a;
        }
        own[t] = coupling(g, coarse, &c, entries / 2, f);
        count[t] = 0;
        for (int which = 1; which < 8; ++which) {
            int nearer[3], fits = 1;
            for (int axis = 0; axis < 3; ++axis) {
                nearer[axis] = which & (1 << axis) ? 0 : f[axis];
                if ((which & (1 << axis)) && !f[axis]) fits = 0;
            }
            if (!fits || !number[t][which]) continue;
            parents[t][count[t]] = W + (((nearer[0] + g.hz) * 3 + nearer[1] + 1) * 3 + nearer[2] + 1) * m;
            parent_of[t][count[t]++] = which;
        }
    }
    REAL sums[8][BLOCK], total[BLOCK];
    for (int K = 0; K < coarse.nz; ++K) {
        const long end = place(coarse, K, coarse.ny - 1, coarse.nx - 1) + 1;
        for (long C = place(coarse, K, 0, 0); C < end; C += BLOCK) {
            const long length = end - C < BLOCK ? end - C : BLOCK;
            REAL *restrict centre = W + order[0] * m + C;
            for (long i = 0; i < length; ++i) centre[i] = 1;
            for (int t = 1; t < entries; ++t) {
                const REAL *a[27], *b[8];
                REAL *restrict out = W + order[t] * m + C;
                for (int q = -1; q < count[t]; ++q) {
                    const int which = q < 0 ? 0 : parent_of[t][q];
                    for (int e = 0; e < number[t][which]; ++e) a[e] = terms[t][which][e] + C;
                    add_arrays(length, number[t][which], a, sums[which]);
                }
                for (int q = 0; q < count[t]; ++q) { a[q] = sums[parent_of[t][q]]; b[q] = parents[t][q] + C; }
                add_products(length, count[t], a, b, total);
                const REAL *restrict diagonal = own[t] + C;
                for (long i = 0; i < length; ++i) {
                    const REAL floor = (REAL)1e-6 * diagonal[i];
                    const REAL value = -total[i] / (sums[0][i] > floor ? sums[0][i] : floor);
                    out[i] = diagonal[i] > 0 ? (value < 0 ? 0 : value > 1 ? 1 : value) : 0;
                }
            }
        }
        for (int k = 0; k < entries; ++k) clear_frame(coarse, K, W + k * m);
    }
}

/* The coarse stencils P^T A P. */
void project(Lattice g, Lattice coarse, const REAL *sorted, const REAL *W, REAL *Ac)
{
    const long m = array_size(coarse);
    const Couplings c = find_couplings(g, coarse, sorted);
    int o[14][3];
    const int count = half_offsets(coarse, o), hz = g.hz;
    /* products[G] is P^T A between a coarse point C and the fine point 2 C + G, where G lies between -2 and 2, from -1
       on in the slowest direction, whose other half is not needed; 2 times 27 arrays go into each. */
    REAL products[hz ? 125 : 25][BLOCK];
    for (int K = 0; K < coarse.nz; ++K) {
        const long end = place(coarse, K, coarse.ny - 1, coarse.nx - 1) + 1;
        for (long C = place(coarse, K, 0, 0); C < end; C += BLOCK) {
            const long length = end - C < BLOCK ? end - C : BLOCK;
            for (int z = -hz; z <= 2 * hz; ++z)
                for (int y = z > 0 ? -2 : -1; y <= 2; ++y)
                    for (int x = -2; x <= 2; ++x) {
                        const REAL *a[27], *w[27];
                        int terms = 0;
                        for (int k = 0; k < c.entries; ++k) {
                            const int *f = c.offset[k], e[3] = {z - f[0], y - f[1], x - f[2]};
                            if (e[0] < -1 || e[0] > 1 || e[1] < -1 || e[1] > 1 || e[2] < -1 || e[2] > 1) continue;
                            const REAL *found = coupling(g, coarse, &c, ((e[0] + hz) * 3 + e[1] + 1) * 3 + e[2] + 1, f);
                            if (!found) continue;
                            a[terms] = found + C;
                            w[terms++] = W + k * m + C;
                        }
                        add_products(length, terms, a, w, products[((z + 2 * hz) * 5 + y + 2) * 5 + x + 2]);
                    }
            for (int d = 0; d < count; ++d) {
                const REAL *t[27], *w[27];
                int terms = 0;
                for (int k = 0; k < c.entries; ++k) {
                    const int *f = c.offset[k];
                    const int G[3] = {f[0] + 2 * o[d][0], f[1] + 2 * o[d][1], f[2] + 2 * o[d][2]};
                    if (G[0] > 2 || G[1] > 2 || G[2] > 2 || G[1] < -2 || G[2] < -2) continue;
                    t[terms] = products[((G[0] + 2 * hz) * 5 + G[1] + 2) * 5 + G[2] + 2];
                    w[terms++] = W + k * m + C + shift(coarse, o[d]);
                }
                add_products(length, terms, t, w, Ac + d * m + C);
            }
        }
        for (int d = 0; d < count; ++d) clear_frame(coarse, K, Ac + d * m);
    }
}

INLINE void restrict_part(int width, int i, int count, const REAL *const *w, const REAL *const *r, long C, REAL *rc)
{
    Points sum = {0};
    for (int k = 0; k < count; ++k) {
        Points v = {0};
        for (int s = 0; s < width; ++s) v[s] = r[k][2 * (i + s)];
        sum += load(width, w[k] + C + i) * v;
    }
    store(width, rc + C + i, sum);
}

/* rc = P^T r on the coarse layers from the first-th to before the last-th. */
void restrict_to(Lattice g, Lattice coarse, int first, int last, const REAL *W, const REAL *r, REAL *rc)
{
    const long m = array_size(coarse);
    for (int L = first; L < last; ++L)
        for (int row = 0; row < rows_per_layer(coarse); ++row) {
            const int K = g.hz ? L : 0, J = g.hz ? row : L;
            const REAL *w[27], *v[27];
            int count = 0;
            for (int fz = -g.hz; fz <= g.hz; ++fz)
                for (int fy = -1; fy <= 1; ++fy)
                    for (int fx = -1; fx <= 1; ++fx) {
                        v[count] = r + place(g, 2 * K + fz, 2 * J + fy, fx);
                        w[count] = W + count * m;
                        ++count;
                    }
            ROW_BY_ROW(restrict_part, coarse.nx, count, w, v, place(coarse, K, J, 0), rc);
        }
}

/* x += P xc on the layers from the first-th to before the last-th. */
void interpolate(Lattice g, Lattice coarse, int first, int last, const REAL *W, const REAL *restrict xc,
                 REAL *restrict x)
{
    const long m = array_size(coarse);
    const int nx = coarse.nx, odd = g.nx / 2;
    REAL even_part[nx], odd_part[nx];
    for (int l = first; l < last; ++l)
        for (int row = 0; row < rows_per_layer(g); ++row) {
            const int k = g.hz ? l : 0, j = g.hz ? row : l;
            memset(even_part, 0, sizeof(even_part));
            memset(odd_part, 0, sizeof(odd_part));
            for (int K = k / 2; K <= (k + 1) / 2; ++K)
                for (int J = j / 2; J <= (j + 1) / 2; ++J) {
                    const long C = place(coarse, K, J, 0);
                    const REAL *restrict a = W + ((k - 2 * K + g.hz) * 3 + j - 2 * J + 1) * 3 * m + C;
                    const REAL *restrict c = a + m, *restrict f = c + m, *restrict v = xc + C;
                    for (int i = 0; i < nx; ++i) {
                        even_part[i] += c[i] * v[i];
                        odd_part[i] += f[i] * v[i] + a[i + 1] * v[i + 1];
                    }
                }
            REAL *restrict out = x + place(g, k, j, 0);
            for (int i = 0; i < odd; ++i) { out[2 * i] += even_part[i]; out[2 * i + 1] += odd_part[i]; }
            if (g.nx % 2) out[g.nx - 1] += even_part[nx - 1];
        }
}

/* Where a level has its operators and its vectors. It corrects from the next level `visits` times; the v-th of these
   steps is taken `lengths[v]` times. */
typedef struct {
    Lattice lattice;
    const REAL *stencils, *sums, *factors, *inverse, *weights;
    REAL *right, *solution, *rest, *before;
    int visits;
    const REAL *lengths;
} Level;

/* The factors of a plane lattice couple all neighbours. */
static Lattice of_factors(Lattice g)
{
    if (!g.hz) g.used = ~0;
    return g;
}

/* Smooth the solution of a level's system, from zero unless `again`, and restrict what is left of it to the right-hand
   side of the next one. All is done layer after layer, as soon as it can be, while operators are in the cache. */
static void smooth_and_restrict(const Level *l, Lattice coarse, REAL *right, int again)
{
    const Lattice g = l->lattice, f = of_factors(g);
    const int layers = number_of_layers(g);
    REAL *way = again ? l->rest : l->solution;
    for (int k = 0; k < layers; ++k) {
        if (again) residual(g, k, k + 1, l->stencils, l->sums, l->right, l->solution, l->rest);
        forward(f, k, k + 1, l->factors, l->inverse, again ? l->rest : l->right, way);
    }
    for (int k = layers - 1; k >= -1; --k) {
        if (k >= 0) backward(f, k, k + 1, l->factors, l->inverse, way, way, again ? l->solution : NULL);
        if (k + 1 < layers) residual(g, k + 1, k + 2, l->stencils, l->sums, l->right, l->solution, l->rest);
        const int K = k < 0 ? 0 : k / 2 + 1; /* takes fine layers from 2 K - 1 = k + 1 on */
        if ((k < 0 || k % 2 == 0) && K < number_of_layers(coarse))
            restrict_to(g, coarse, K, K + 1, l->weights, l->rest, right);
    }
}

/* Add the correction from the next level to the solution, and smooth it. */
static void interpolate_and_smooth(const Level *l, Lattice coarse, const REAL *correction)
{
    const Lattice g = l->lattice, f = of_factors(g);
    const int layers = number_of_layers(g);
    interpolate(g, coarse, 0, 1, l->weights, correction, l->solution);
    for (int k = 0; k < layers; ++k) {
        if (k + 1 < layers) interpolate(g, coarse, k + 1, k + 2, l->weights, correction, l->solution);
        residual(g, k, k + 1, l->stencils, l->sums, l->right, l->solution, l->rest);
        forward(f, k, k + 1, l->factors, l->inverse, l->rest, l->rest);
    }
    backward(f, 0, layers, l->factors, l->inverse, l->rest, l->rest, l->solution);
}

/* x = before + length (x - before), before = 0 if NULL. */
static void stretch(Lattice g, REAL length, const REAL *restrict before, REAL *restrict x)
{
    const long n = array_size(g);
    if (length == 1) return;
    if (before) for (long p = 0; p < n; ++p) x[p] = before[p] + length * (x[p] - before[p]);
    else for (long p = 0; p < n; ++p) x[p] *= length;
}

/* One symmetric cycle over `count` levels, of which the last one has a dense inverse. */
void cycle(const Level *l, int count, const REAL *dense, int again)
{
    const Lattice g = l->lattice;
    if (count == 1) {
        const long points = (long)g.nz * g.ny * g.nx;
        for (long p = 0; p < points; ++p) {
            const REAL *row = dense + p * points;
            REAL sum = 0;
            for (int k = 0; k < g.nz; ++k)
                for (int j = 0; j < g.ny; ++j, row += g.nx)
                    for (int i = 0; i < g.nx; ++i) sum += row[i] * l->right[place(g, k, j, i)];
            l->solution[place(g, p / g.nx / g.ny, p / g.nx % g.ny, p % g.nx)] = sum;
        }
        return;
    }
    smooth_and_restrict(l, l[1].lattice, l[1].right, again);
    if (count == 2) cycle(l + 1, 1, dense, 0); /* exact */
    else for (int visit = 0; visit < l->visits; ++visit) {
        if (visit) memcpy(l[1].before, l[1].solution, array_size(l[1].lattice) * sizeof(REAL));
        cycle(l + 1, count - 1, dense, visit);
        stretch(l[1].lattice, l->lengths[visit], visit ? l[1].before : NULL, l[1].solution);
    }
    interpolate_and_smooth(l, l[1].lattice, l[1].solution);
}

/* Find the places of the entries of a matrix's rows in its stencils: of those that couple with a place not before their
   own, their indices and places, and which arrays they fill. `to` holds the place of each entry's column, half[step] is
   the array of the entries a step further on, or -1; an owner's array begins at `start` and is `size` long. Returns
   their number, or -1 - e where entry e couples with what is no neighbour. */
long find_entries(long rows, const int *indptr, const long *from, const long *to, long span, const int *half,
                  const long *start, const long *size, int *entries, long *places, int *used)
{
    long count = 0;
    for (long row = 0; row < rows; ++row)
        for (int e = indptr[row]; e < indptr[row + 1]; ++e) {
            const long step = to[e] - from[row];
            if (step < 0) continue;
            const int h = step < span ? half[step] : -1;
            if (h < 0) return -1 - (long)e;
            *used |= 1 << h;
            entries[count] = e;
            places[count++] = start[row] + h * size[row];
        }
    return count;
}

/* Which arrays of the stencils have entries that are more than rounding, `least` times a diagonal entry. */
int find_used(Lattice g, const REAL *A, REAL least)
{
    const long n = array_size(g);
    int o[14][3];
    const int count = half_offsets(g, o);
    int used = 1;
    for (int h = 1; h < count; ++h) {
        if (!is_used(g, h)) continue;
        int found = 0;
        for (int l = 0; l < number_of_layers(g) && !found; ++l)
            for (int j = 0; j < rows_per_layer(g); ++j) {
                const long p = row_of_layer(g, l, j);
                const REAL *restrict a = A + h * n + p, *restrict d = A + p, *restrict e = A + p + shift(g, o[h]);
                /* Not the other way round: NaN is more than rounding. */
                for (int i = 0; i < g.nx; ++i)
                    found |= !(FABS(a[i]) <= least * FABS(d[i])) | !(FABS(a[i]) <= least * FABS(e[i]));
            }
        used |= found << h;
    }
    return used;
}

/* Move entries between PETSc's numbering and the lattice, rounding to and from double. */
void gather(long count, const int *sources, const int *places, const double *values, REAL *out)
{
    for (long i = 0; i < count; ++i) out[places[i]] = (REAL)values[sources[i]];
}

void scatter(long count, const int *sources, const int *places, const REAL *values, double *out)
{
    for (long i = 0; i < count; ++i) out[sources[i]] = values[places[i]];
}
