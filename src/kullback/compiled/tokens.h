// The statistics of two next-token distributions p = softmax(z_p) and q = softmax(z_q), and their gradients with respect
// to the logits, for a row of logits each. Like rows.h, this file is included once for each type.
//
// The naive equations, with d = log q - log p and m = (p + q)/2:
//     KL(p || q) = sum p (log p - log q),  KL(q || p) = sum q (log q - log p),
//     JS(p, q) = (KL(p || m) + KL(q || m))/2,  total variation = sum |p - q| / 2,  entropy = -sum p log p.
// Here phi(d) = e^d - 1 - d and e = e^d - 1, so that with nearly equal distributions no terms cancel:
//     KL(p || q) = sum p phi(d),  KL(q || p) = sum p (d e - phi(d)),  p - q = -p e,
//     JS = sum m g(d), where g = u tanh(u) - log cosh(u) with u = d/2.
// The normalisers log Z_p and log Z_q are given, because they are sums over all parts of a vocabulary that is split.
// With DIFFERENCE, the second row is z_q - z_p, which has more digits than the difference of two rounded logits.

// Coefficients of g / t^2 as a polynomial in t^2, where t = tanh(u): interpolation at the Chebyshev nodes of
// 0 <= t^2 <= 0.2525. The relative errors are 5e-19 in float64 and 3e-9 in float32.
static const Real MIDDLE[] = {
#if IS_DOUBLE
    0.5,
    0.0833333333333336486,
    0.0333333333332524085,
    0.0178571428653039858,
    0.0111111106828406197,
    0.00757577099386508282,
    0.00549423424200668903,
    0.00417036931938081293,
    0.00323299842571518936,
    0.00286199633494525514,
    0.00111554663058309052,
    0.00500674553330788607,
    -0.0045076128141515067,
    0.00721686624082654863,
#else
    0.499999998694392537f, 0.0833337046136074376f,  0.0333164194142644323f,
    0.0181347099342122213f, 0.00910581417243113318f, 0.0138421045833923778f,
#endif
};

INLINE Vector magnitude(Vector a) { return (Vector)((Bits)a & ~SIGN); }

// g and log cosh(u) of u = d/2, from e = e^d - 1.
INLINE void middle_terms(Vector d, Vector e, Vector &g, Vector &log_cosh) {
    Vector u = d * Real(0.5), t = e / (e + Real(2)), w = t * t, size = magnitude(t);
    Vector near = w * horner(w, MIDDLE), rest = Real(1) - size;
    // y = e^-|d| = (1 - |t|)/(1 + |t|), and log1p(y) = 2 atanh(y / (2 + y)) with y / (2 + y) = (1 - |t|)/(3 + |t|).
    Vector s = rest / (size + Real(3)), square = s * s, log1p_y = s * Real(2) + s * (square * horner(square, ATANH));
    Vector far = Real(LOG2) - log1p_y - magnitude(d) * (rest * Real(0.5));
    Integers small = w <= Real(0.25);
    g = small ? near : far;
    log_cosh = small ? u * t - near : magnitude(u) + (log1p_y - Real(LOG2));
}

// max z, log sum exp(z - max z) and the index of max z, where z is the row, or the sum of two rows.
static void token_normalizer(const void *row, const void *added, size_t n, double *top_out, double *log_sum,
                             double *index) {
    const Real *z = static_cast<const Real *>(row), *extra = static_cast<const Real *>(added);
    Real sums[BLOCK], top = -Real(HUGE_VAL);
    size_t largest = 0;
    double total = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (size_t start = 0; start < n; start += BLOCK) {
            size_t length = n - start < BLOCK ? n - start : BLOCK, whole = length - length % LANES;
            const Real *from = z + start;
            if (extra) {
                for (size_t i = 0; i < length; i++) sums[i] = z[start + i] + extra[start + i];
                from = sums;
            }
            if (pass == 0) {
                Real found = largest_of(from, length);
                if (found > top || (start == 0 && found == top)) {
                    top = found;
                    size_t at = 0;
                    while (at < length && from[at] != top) at++;
                    largest = start + (at < length ? at : 0);
                }
                continue;
            }
            Vector weights = {};
            for (size_t i = 0; i < whole; i += LANES) {
                Vector a = load(from + i) - top;
                weights += a == a ? exponential(a) : a;
            }
            if (whole < length) {
                Vector a = load_part(from + whole, length - whole, -HUGE_VAL) - top;
                weights += a == a ? exponential(a) : a;
            }
            total += sum(weights);
        }
        if (!(top > -Real(HUGE_VAL))) break;
    }
    *top_out = top;
    *log_sum = std::log(total);
    *index = double(largest);
}

struct TokenRow {
    Real top_p, top_q, shift, rest;  // log(Z_q / Z_p) = shift + rest
    double top, other, difference;   // max z_p, max z_q and log(Z_q / Z_p)
};

static TokenRow token_row(double top_p, double log_z_p, double top_q, double log_z_q) {
    TokenRow row;
    row.top = top_p > -HUGE_VAL ? top_p : 0;  // a part of a vocabulary whose tokens are all impossible
    row.other = top_q > -HUGE_VAL ? top_q : 0;
    row.top_p = Real(row.top);
    row.top_q = Real(row.other);
    row.difference = log_z_q - log_z_p;
    row.shift = Real(row.difference);
    row.rest = Real(row.difference - double(row.shift));
    return row;
}

template <bool MIDDLES, bool DIFFERENCE>
static bool token_block(const Real *p, const Real *q, size_t n, const TokenRow &row, double *sums) {
    Vector totals[TOKEN_SUMS] = {};
    Integers fast = ~(Integers){};
#define STEP(a, b, KEEP)                                                                                              \
    Vector above_p = a - row.top_p, above_q = (DIFFERENCE ? a + b : b) - row.top_q;                                    \
    Vector d = ((DIFFERENCE ? b : b - a) - row.shift) - row.rest, r, power, tail;                                      \
    Vector weight = KEEP(exponential(above_p));                                                                        \
    split_exponent(d, r, power, tail);                                                                                 \
    fast &= (d < MAX_D) & (d > MIN_D);                                                                                 \
    Vector e = (power - Real(1)) + power * (r + tail), phi = ((power - Real(1)) - d) + power * r + power * tail;       \
    Vector excess = weight * e, weight_q = weight + excess;                                                            \
    totals[TOKEN_MASS] += weight;                                                                                      \
    totals[TOKEN_PHI] += weight * phi;                                                                                 \
    totals[TOKEN_EXCESS] += excess;                                                                                    \
    totals[TOKEN_REVERSE] += d * excess - weight * phi;                                                                \
    totals[TOKEN_ABSOLUTE] += magnitude(excess);                                                                       \
    totals[TOKEN_LOGITS_P] += weight * above_p;                                                                        \
    totals[TOKEN_LOGITS_Q] += KEEP(exponential(above_q)) * above_q;                                                                      \
    if (MIDDLES) {                                                                                                     \
        Vector g, log_cosh, u = d * Real(0.5);                                                                         \
        middle_terms(d, e, g, log_cosh);                                                                               \
        totals[TOKEN_JS] += (weight + weight_q) * g;                                                                   \
        totals[TOKEN_MIDDLE_P] -= weight * (u + log_cosh);                                                             \
        totals[TOKEN_MIDDLE_Q] += weight_q * (u - log_cosh);                                                           \
    }
#define WHOLE(weight) (weight)
#define PART(weight) ((weight) * present)
    size_t whole = n - n % LANES;
    for (size_t i = 0; i < whole; i += LANES) {
        Vector a = load(p + i), b = load(q + i);
        STEP(a, b, WHOLE)
    }
    if (whole < n) {  // the missing tokens have the weight 0 and d = 0
        Vector a = load_part(p + whole, n - whole, row.top_p), b = load_part(q + whole, n - whole, row.top_q);
        Real ones[LANES];
        for (size_t i = 0; i < LANES; i++) ones[i] = i < n - whole;
        Vector present = load(ones);
        b = present == Real(0) ? ((DIFFERENCE ? all(0) : a) + row.shift) + row.rest : b;
        STEP(a, b, PART)
    }
#undef STEP
#undef WHOLE
#undef PART
    Signed every = -1;
    for (size_t i = 0; i < LANES; i++) every &= fast[i];
    if (every)
        for (int k = 0; k < TOKEN_SUMS; k++) sums[k] += k == TOKEN_JS ? sum(totals[k]) / 2 : sum(totals[k]);
    return every;
}

// A block with impossible tokens, with q far from p, or with invalid logits (nan).
template <bool DIFFERENCE>
static __attribute__((noinline)) void special_tokens(const Real *p, const Real *q, size_t n, const TokenRow &row,
                                                     double *sums) {
    Real kept_p[BLOCK], kept_q[BLOCK];
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        Real d = ((DIFFERENCE ? q[i] : q[i] - p[i]) - row.shift) - row.rest;
        if (d < MAX_D && d > MIN_D) {
            kept_p[kept] = p[i];
            kept_q[kept++] = q[i];
            continue;
        }
        double z_q = DIFFERENCE ? double(p[i]) + double(q[i]) : double(q[i]);
        double above_p = double(p[i]) - row.top, above_q = z_q - row.other;
        double log_q = (z_q - row.difference) - row.top, gap = log_q - above_p;
        double weight = std::exp(above_p), weight_q = std::exp(log_q);
        bool possible_p = !(p[i] == -Real(HUGE_VAL)), possible_q = !(z_q == -HUGE_VAL);
        sums[TOKEN_MASS] += weight;
        sums[TOKEN_EXCESS] += weight_q - weight;
        sums[TOKEN_ABSOLUTE] += std::fabs(weight_q - weight);
        if (possible_p) sums[TOKEN_LOGITS_P] += weight * above_p;
        if (possible_q) sums[TOKEN_LOGITS_Q] += std::exp(above_q) * above_q;
        if (possible_p && possible_q) {
            double larger = std::log1p(std::exp(-std::fabs(gap))) - LOG2;  // log m less the larger of log p and log q
            double log_p_m = (gap > 0 ? -gap : 0) - larger, log_q_m = (gap > 0 ? 0 : gap) - larger;
            sums[TOKEN_PHI] += weight_q - weight - weight * gap;
            sums[TOKEN_REVERSE] += weight - weight_q + weight_q * gap;
            sums[TOKEN_MIDDLE_P] += weight * log_p_m;
            sums[TOKEN_MIDDLE_Q] += weight_q * log_q_m;
            sums[TOKEN_JS] += (weight * log_p_m + weight_q * log_q_m) / 2;
        } else {
            sums[TOKEN_PHI] += possible_p ? HUGE_VAL : weight_q;
            sums[TOKEN_REVERSE] += possible_q ? HUGE_VAL : weight;
            sums[TOKEN_MIDDLE_P] += weight * LOG2;
            sums[TOKEN_MIDDLE_Q] += weight_q * LOG2;
            sums[TOKEN_JS] += (weight + weight_q) * LOG2 / 2;
        }
    }
    if (kept) token_block<true, DIFFERENCE>(kept_p, kept_q, kept, row, sums);
}

// The sums over a row, or over a part of it: with the normalisers of the whole vocabulary, they add up.
static void token_sums(const void *p_row, const void *q_row, size_t n, const double *normalizers, bool middles,
                       bool difference, double *sums) {
    const Real *p = static_cast<const Real *>(p_row), *q = static_cast<const Real *>(q_row);
    TokenRow row = token_row(normalizers[0], normalizers[1], normalizers[2], normalizers[3]);
    for (int k = 0; k < TOKEN_SUMS; k++) sums[k] = 0;
    for (size_t start = 0; start < n; start += BLOCK) {
        size_t length = n - start < BLOCK ? n - start : BLOCK;
        auto function = difference ? (middles ? token_block<true, true> : token_block<false, true>)
                                   : (middles ? token_block<true, false> : token_block<false, false>);
        if (!function(p + start, q + start, length, row, sums))
            (difference ? special_tokens<true> : special_tokens<false>)(p + start, q + start, length, row, sums);
    }
    // The weights are exp(z_p - max z_p), except those of TOKEN_LOGITS_Q, which are exp(z_q - max z_q).
    double factor = std::exp(row.top - normalizers[1]), factor_q = std::exp(row.other - normalizers[3]);
    for (int k = 0; k < TOKEN_SUMS; k++)
        if (sums[k] != 0) sums[k] *= k == TOKEN_LOGITS_Q ? factor_q : factor;
}

// Overwrite the logits of p, and of q if asked, with their gradients.
static void token_gradients(void *p_row, void *q_row, size_t n, const double *normalizers, bool difference,
                            const double *of_p, const double *of_q) {
    Real *p = static_cast<Real *>(p_row), *q = static_cast<Real *>(q_row);
    TokenRow row = token_row(normalizers[0], normalizers[1], normalizers[2], normalizers[3]);
    Real factor_p = Real(std::exp(row.top - normalizers[1])), factor_q = Real(std::exp(row.other - normalizers[3]));
    const double *given[2] = {of_p, of_q};
    Real c[2][TOKEN_COEFFICIENTS] = {};
    for (int side = 0; side < 2; side++)
        for (int k = 0; given[side] && k < TOKEN_COEFFICIENTS; k++) c[side][k] = Real(given[side][k]);
    bool middles = c[0][TOKEN_MIDDLE] != 0 || c[1][TOKEN_MIDDLE] != 0;
    const Real infinite = Real(HUGE_VAL);
    for (size_t i = 0; i < n; i += LANES) {
        size_t count = n - i < LANES ? n - i : LANES;
        Vector a = count == LANES ? load(p + i) : load_part(p + i, count, row.top_p);
        Vector b = count == LANES ? load(q + i) : load_part(q + i, count, row.top_q);
        Vector d = ((difference ? b : b - a) - row.shift) - row.rest;
        b = difference ? a + b : b;
        Vector above_p = a - row.top_p, above_q = b - row.top_q;
        Vector prob_p = exponential(above_p) * factor_p, prob_q = exponential(above_q) * factor_q, r, power, tail;
        Integers close = (d < Real(1)) & (d > Real(-1));
        Vector bounded = d < MAX_D ? (d > MIN_D ? d : all(MIN_D)) : all(MAX_D);
        split_exponent(bounded, r, power, tail);
        Vector e = (power - Real(1)) + power * (r + tail);
        Vector excess = close ? prob_p * e : prob_q - prob_p;
        Vector log_m_p = {}, log_q_m = {};
        if (middles) {
            Vector g, log_cosh, finite = magnitude(d) < infinite ? d : bounded, u = finite * Real(0.5);
            middle_terms(finite, e, g, log_cosh);
            log_m_p = u + log_cosh;
            log_q_m = u - log_cosh;
        }
        Integers possible_p = a > -infinite, possible_q = b > -infinite;
#define SIDE(out, side, z, above, prob, log_middle, possible)                                                         \
    if (given[side]) {                                                                                                 \
        const Real *k = c[side];                                                                                       \
        Vector inner = k[TOKEN_CONSTANT] + k[TOKEN_LOGITS] * above;                                                    \
        if (k[TOKEN_RATIO] != 0) inner += k[TOKEN_RATIO] * d;                                                          \
        if (k[TOKEN_MIDDLE] != 0) inner += k[TOKEN_MIDDLE] * log_middle;                                               \
        Vector gradient = possible ? prob * inner : all(0);                                                            \
        gradient += k[TOKEN_DIFFERENCE] * excess;                                                                      \
        gradient *= possible ? k[TOKEN_SCALE] - k[TOKEN_CURVATURE] * (z * z) : all(k[TOKEN_SCALE]);                    \
        gradient = z == z ? gradient : z;                                                                              \
        std::memcpy(out + i, &gradient, count * sizeof(Real));                                                         \
    }
        SIDE(p, 0, a, above_p, prob_p, log_m_p, possible_p)
        SIDE(q, 1, b, above_q, prob_q, log_q_m, possible_q)
#undef SIDE
    }
}
