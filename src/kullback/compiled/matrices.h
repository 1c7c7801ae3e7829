// KL of multivariate normal distributions in float64, for one instruction set; residuals.h is included before this file.
//
// Given two lower factors, S = L L^T: with K = L2^-1 (L1 - L2) and w = L2^-1 (loc1 - loc2),
//   KL = (sum_i phi(2 log(L1_ii/L2_ii)) + sum_(i>j) K_ij^2 + |w|^2)/2.
// Given two covariance matrices: with A = L2^-1 (S1 - S2) L2^-T and I + A = C^T C,
//   KL = (sum_i phi(log(1 + s_i)) + sum_(i<j) C_ij^2 + |w|^2)/2,
// where 1 + s_i = C_ii^2. The s_i are computed without the 1, so that no term cancels for nearly equal matrices. All terms
// are non-negative. Matrices are stored by rows, whose length is n rounded up to whole vectors, with zeros at the end.

INLINE double dot(const double *x, const double *y, size_t n) {
    Vector one = {}, two = {};
    size_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        one += load(x + i) * load(y + i);
        two += load(x + i + LANES) * load(y + i + LANES);
    }
    if (i + LANES <= n) {
        one += load(x + i) * load(y + i);
        i += LANES;
    }
    double total = sum(one + two);
    for (; i < n; i++) total += x[i] * y[i];
    return total;
}

// The number of doubles in whole vectors.
INLINE size_t whole_vectors(size_t n) { return (n + LANES - 1) / LANES * LANES; }

static const size_t GROUP = 4;  // rows of a solution from which a sum over earlier rows is subtracted together

// y_r -= sum_k f(r, k) x_k over `count` rows x_k at distance `length`, for ROWS rows y_r and for the columns from `from` to
// `to`, which are multiples of LANES; f(r, k) is f[r rows + k columns].
template <size_t ROWS>
INLINE void subtract(const double *f, size_t rows, size_t columns, const double *x, size_t count, size_t length,
                     size_t from, size_t to, double *y) {
    if (!count) return;
    for (size_t j = from; j < to; j += 2 * LANES) {
        bool pair = j + LANES < to;
        size_t other = pair ? j + LANES : j;
        Vector one[ROWS], two[ROWS];
        for (size_t r = 0; r < ROWS; r++) one[r] = load(y + r * length + j), two[r] = load(y + r * length + other);
        for (size_t k = 0; k < count; k++) {
            Vector x1 = load(x + k * length + j), x2 = load(x + k * length + other);
            for (size_t r = 0; r < ROWS; r++) {
                double factor = f[r * rows + k * columns];
                one[r] -= factor * x1;
                two[r] -= factor * x2;
            }
        }
        for (size_t r = 0; r < ROWS; r++) {
            std::memcpy(y + r * length + j, one + r, sizeof(Vector));
            if (pair) std::memcpy(y + r * length + other, two + r, sizeof(Vector));
        }
    }
}

// The entries of a solution that are needed. Other entries may change, and stay 0 where the solution is triangular.
enum Part { WHOLE_MATRIX, LOWER, UPPER };

static const size_t COLUMNS = 64;  // of a solution that are computed together, so that they stay in the cache

// A lower factor, whose entry (i, k) is at values[i * rows + k * columns]: a Cholesky factor is stored as its transpose.
struct Factor {
    double *values;
    size_t rows, columns;
};

INLINE void scale_row(double *row, double factor, size_t from, size_t to) {
    for (size_t j = from; j < to; j += LANES) {
        Vector scaled = load(row + j) * factor;
        std::memcpy(row + j, &scaled, sizeof scaled);
    }
}

// X = L^-1 X for a lower factor L and an n x n matrix X, or X = L^-T X.
static __attribute__((noinline)) void solve(bool transposed, Factor l, double *x, size_t n, Part part) {
    size_t length = whole_vectors(n);
    for (size_t start = 0; start < length; start += COLUMNS) {
        size_t end = start + COLUMNS < length ? start + COLUMNS : length;
        for (size_t step = 0; step < n; step += GROUP) {
            // The rows first, ..., last - 1 of the solution depend on the rows 0, ..., first - 1, or on last, ..., n - 1.
            size_t size = n - step < GROUP ? n - step : GROUP;
            size_t first = transposed ? n - step - size : step, last = first + size;
            size_t from = part == UPPER && first / LANES * LANES > start ? first / LANES * LANES : start;
            size_t to = part == LOWER && whole_vectors(last) < end ? whole_vectors(last) : end;
            if (from >= to) continue;
            double *rows = x + first * length;
            if (transposed) {
                const double *f = l.values + last * l.rows + first * l.columns;
                if (size == GROUP)
                    subtract<GROUP>(f, l.columns, l.rows, x + last * length, n - last, length, from, to, rows);
                else
                    for (size_t r = 0; r < size; r++)
                        subtract<1>(f + r * l.columns, 0, l.rows, x + last * length, n - last, length, from, to,
                                    rows + r * length);
            } else {
                const double *f = l.values + first * l.rows;
                if (size == GROUP)
                    subtract<GROUP>(f, l.rows, l.columns, x, first, length, from, to, rows);
                else
                    for (size_t r = 0; r < size; r++)
                        subtract<1>(f + r * l.rows, 0, l.columns, x, first, length, from, to, rows + r * length);
            }
            for (size_t r = 0; r < size; r++) {
                size_t i = transposed ? last - 1 - r : first + r;
                double *row = x + i * length;
                if (transposed)
                    subtract<1>(l.values + (i + 1) * l.rows + i * l.columns, 0, l.rows, row + length, r, length, from, to,
                                row);
                else
                    subtract<1>(l.values + i * l.rows + first * l.columns, 0, l.columns, rows, r, length, from, to, row);
                scale_row(row, 1 / l.values[i * (l.rows + l.columns)], from, to);
            }
        }
    }
}

// w = L^-1 w or L^-T w for a vector.
static void solve_vector(bool transposed, Factor l, double *w, size_t n) {
    for (size_t step = 0; step < n; step++) {
        size_t i = transposed ? n - 1 - step : step;
        w[i] /= l.values[i * (l.rows + l.columns)];
        if (transposed)
            for (size_t j = 0; j < i; j++) w[j] -= l.values[i * l.rows + j * l.columns] * w[i];
        else
            for (size_t j = i + 1; j < n; j++) w[j] -= l.values[j * l.rows + i * l.columns] * w[i];
    }
}

static void transpose(const double *x, double *out, size_t n) {
    size_t length = whole_vectors(n);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) out[j * length + i] = x[i * length + j];
}

template <class Number>
static void copy_matrix(const Number *from, double *to, size_t n) {
    size_t length = whole_vectors(n);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < length; j++) to[i * length + j] = j < n ? double(from[i * n + j]) : 0;
}

// The upper factor C of a symmetric matrix plus `unit` times the identity, C^T C, from the upper triangle of the matrix. The
// squares of the diagonal of C are s_i plus the unit. False if the sum is not positive definite.
static __attribute__((noinline)) bool cholesky(const double *matrix, double unit, double *c, double *s, size_t n) {
    size_t length = whole_vectors(n);
    for (size_t i = 0; i < n * length; i++) c[i] = 0;
    for (size_t start = 0; start < length; start += COLUMNS) {
        size_t end = start + COLUMNS < length ? start + COLUMNS : length;
        for (size_t first = 0; first < n && first < end; first += GROUP) {
            size_t from = first > start ? first / LANES * LANES : start, size = n - first < GROUP ? n - first : GROUP;
            double *rows = c + first * length;
            for (size_t r = 0; r < size; r++)
                std::memcpy(rows + r * length + from, matrix + (first + r) * length + from, (end - from) * sizeof(double));
            if (size == GROUP)
                subtract<GROUP>(c + first, 1, length, c, first, length, from, end, rows);
            else
                for (size_t r = 0; r < size; r++)
                    subtract<1>(c + first + r, 0, length, c, first, length, from, end, rows + r * length);
            for (size_t i = first; i < first + size; i++) {
                double *row = c + i * length;
                subtract<1>(rows + i, 0, length, rows, i - first, length, from, end, row);
                if (i >= start) {
                    s[i] = row[i];
                    if (!(s[i] > -unit)) return false;
                }
                double diagonal = std::sqrt(unit + s[i]);
                scale_row(row, 1 / diagonal, from, end);
                if (i < start) continue;
                for (size_t j = from; j < i; j++) row[j] = 0;
                row[i] = diagonal;
            }
        }
    }
    return true;
}

template <class Number>
static bool is_lower(const Number *matrix, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (!(matrix[i * n + i] > 0)) return false;
        for (size_t j = i + 1; j < n; j++)
            if (matrix[i * n + j] != 0) return false;
    }
    return true;
}

// Whether the entries differ from the entries of the transpose by at most `tolerance` times the largest entry.
template <class Number>
static bool is_symmetric(const Number *matrix, size_t n, double tolerance) {
    double largest = 0, skew = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j <= i; j++) {
            double x = matrix[i * n + j], y = matrix[j * n + i];
            double gap = std::fabs(x - y), size = std::fabs(x) > std::fabs(y) ? std::fabs(x) : std::fabs(y);
            skew = gap > skew ? gap : skew;
            largest = size > largest ? size : largest;
        }
    return skew <= tolerance * largest;
}

// The parts of a pair: `factor` is L2; `change` is K or C; s has the n numbers s_i of two covariance matrices; w is
// L2^-1 (loc1 - loc2); `other` is A of two covariance matrices; the others are for intermediate results.
struct Pair {
    Factor factor;
    double *change, *other, *turned, *more, *s, *w;
};

static Pair pair_in(bool factors, double *memory, size_t n) {
    size_t length = whole_vectors(n), size = n * length;
    double *vectors = memory + 5 * size;
    Factor factor = {memory, factors ? length : 1, factors ? 1 : length};
    return {factor,  memory + size, memory + 2 * size, memory + 3 * size, memory + 4 * size,
            vectors, vectors + n};
}

// Fill the parts; false where the general implementation is required.
template <class Number>
static bool fill_pair(bool factors, const Number *loc1, const Number *m1, const Number *loc2, const Number *m2, size_t n,
                      Pair pair) {
    size_t length = whole_vectors(n);
    for (size_t i = 0; i < n; i++) {
        pair.w[i] = double(loc1[i]) - double(loc2[i]);
        for (size_t j = 0; j < length; j++)
            pair.change[i * length + j] = j < n ? double(m1[i * n + j]) - double(m2[i * n + j]) : 0;
    }
    if (factors) {
        if (!is_lower(m1, n) || !is_lower(m2, n)) return false;
        copy_matrix(m2, pair.factor.values, n);
        solve(false, pair.factor, pair.change, n, LOWER);
    } else {
        double tolerance = sizeof(Number) == 8 ? 2.220446049250313e-13 : 1.1920929e-4;
        if (!is_symmetric(m1, n, tolerance) || !is_symmetric(m2, n, tolerance)) return false;
        copy_matrix(m2, pair.other, n);
        if (!cholesky(pair.other, 0, pair.factor.values, pair.s, n)) return false;
        solve(false, pair.factor, pair.change, n, WHOLE_MATRIX);
        for (size_t i = 0; i < n * length; i++) pair.other[i] = 0;
        transpose(pair.change, pair.other, n);
        solve(false, pair.factor, pair.other, n, UPPER);
        if (!cholesky(pair.other, 1, pair.change, pair.s, n)) return false;
    }
    solve_vector(false, pair.factor, pair.w, n);
    return true;
}

// The residual of u/v of a pair of numbers.
static Residual residual_of(double u, double v, double difference) { return residual(all(u), all(v), all(difference)); }

template <class Number>
static bool multivariate_row(bool factors, const Number *loc1, const Number *m1, const Number *loc2, const Number *m2,
                             size_t n, double *memory, double *kl) {
    Pair pair = pair_in(factors, memory, n);
    if (!fill_pair(factors, loc1, m1, loc2, m2, n, pair)) return false;
    size_t length = whole_vectors(n);
    double total = dot(pair.w, pair.w, n), diagonal = 0;
    for (size_t i = 0; i < n; i++) {  // without the diagonal
        const double *row = pair.change + i * length;
        total += factors ? dot(row, row, i) : dot(row + i + 1, row + i + 1, n - i - 1);
    }
    bool near = true;
    for (size_t i = 0; i < n; i++) {
        if (factors) {
            double x = m1[i * n + i], y = m2[i * n + i], t = (x - y) / y;
            if (!(x >= SMALLEST && x <= 1 / SMALLEST && y >= SMALLEST && y <= 1 / SMALLEST)) return false;
            diagonal += 2 * residual_of(x, y, x - y).phi[0] + t * t;
        } else {
            near = near && pair.s[i] < 0.5 && pair.s[i] > -0.5;
            if (near) diagonal += residual_of(1 + pair.s[i], 1, pair.s[i]).phi[0];
        }
    }
    if (!near) {  // the logarithms of determinants, because 1 + s_i may have lost digits
        diagonal = 0;
        for (size_t i = 0; i < n; i++) diagonal += pair.s[i];
        copy_matrix(m1, pair.other, n);
        if (!cholesky(pair.other, 0, pair.change, pair.s, n)) return false;
        for (size_t i = 0; i < n; i++)
            diagonal -= 2 * std::log(pair.change[i * length + i] / pair.factor.values[i * length + i]);
    }
    *kl = (total + diagonal) / 2;
    return std::fabs(*kl) < HUGE_VAL && *kl >= 0;
}

// A symmetric matrix with this upper triangle.
static void copy_upper(const double *from, double *to, size_t n) {
    size_t length = whole_vectors(n);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = i; j < n; j++) to[i * length + j] = to[j * length + i] = from[i * length + j];
        for (size_t j = n; j < length; j++) to[i * length + j] = 0;
    }
}

// out = factor sym(L^-T X L^-1) for a matrix X, which is replaced.
template <class Number>
static void both_sides(Pair pair, double *x, size_t n, double factor, Number *out) {
    size_t length = whole_vectors(n);
    double *turned = pair.turned;
    solve(true, pair.factor, x, n, WHOLE_MATRIX);
    for (size_t i = 0; i < n * length; i++) turned[i] = 0;
    transpose(x, turned, n);
    solve(true, pair.factor, turned, n, WHOLE_MATRIX);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++)
            out[i * n + j] = Number(factor / 2 * (turned[i * length + j] + turned[j * length + i]));
}

// upstream times the derivatives of KL with respect to loc and the matrix of p and of q; an output may be null.
template <class Number>
static bool multivariate_slopes(bool factors, const Number *loc1, const Number *m1, const Number *loc2, const Number *m2,
                                size_t n, double *memory, double upstream, Number *const *outs) {
    Pair pair = pair_in(factors, memory, n);
    if (!fill_pair(factors, loc1, m1, loc2, m2, n, pair)) return false;
    size_t length = whole_vectors(n);
    double *const change = pair.change, *const other = pair.other, *const w = pair.w;
    if (factors) {
        if (outs[3]) {  // -L2^-T (K + K^T + K K^T + w w^T)
            for (size_t i = 0; i < n * length; i++) other[i] = pair.turned[i] = 0;
            transpose(change, pair.turned, n);
            for (size_t i = 0; i < n; i++)
                subtract<1>(change + i * length, 0, 1, pair.turned, i + 1, length, 0, length, other + i * length);
            for (size_t i = 0; i < n; i++)
                for (size_t j = 0; j < n; j++)
                    other[i * length + j] = w[i] * w[j] + (change[i * length + j] + change[j * length + i]) -
                                            other[i * length + j];
            solve(true, pair.factor, other, n, LOWER);
            for (size_t i = 0; i < n; i++)
                for (size_t j = 0; j < n; j++)
                    outs[3][i * n + j] = Number(j <= i ? -upstream * other[i * length + j] : 0);
        }
        if (outs[1]) {  // L2^-T K + the inverse of the diagonal of L2 - the inverse of the diagonal of L1
            solve(true, pair.factor, change, n, LOWER);
            for (size_t i = 0; i < n; i++) {
                double x = m1[i * n + i], y = m2[i * n + i];
                change[i * length + i] += (x - y) / x / y;
                for (size_t j = 0; j < n; j++)
                    outs[1][i * n + j] = Number(j <= i ? upstream * change[i * length + j] : 0);
            }
        }
    } else {
        if (outs[3]) {  // -L2^-T (A + w w^T) L2^-1 / 2
            copy_upper(other, pair.more, n);
            for (size_t i = 0; i < n; i++)
                for (size_t j = 0; j < n; j++) pair.more[i * length + j] += w[i] * w[j];
            both_sides(pair, pair.more, n, -upstream / 2, outs[3]);
        }
        if (outs[1]) {  // L2^-T (I - (I + A)^-1) L2^-1 / 2 with I - (I + A)^-1 = C^-1 C^-T A
            copy_upper(other, pair.more, n);
            solve(false, {change, 1, length}, pair.more, n, WHOLE_MATRIX);
            solve(true, {change, 1, length}, pair.more, n, WHOLE_MATRIX);
            both_sides(pair, pair.more, n, upstream / 2, outs[1]);
        }
    }
    solve_vector(true, pair.factor, w, n);
    for (size_t i = 0; i < n; i++) {
        if (outs[0]) outs[0][i] = Number(upstream * w[i]);
        if (outs[2]) outs[2][i] = Number(-upstream * w[i]);
    }
    return true;
}
