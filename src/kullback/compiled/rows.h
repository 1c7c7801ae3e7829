// The kernels of rows for one type and one instruction set. There is no include guard: variant.h includes this file
// once for each type, with Real, Signed, Unsigned, MANTISSA and IS_DOUBLE defined.
//
// Probabilities. The naive equation is KL(p || q) = sum_i p_i log(p_i / q_i). Here log(p/q) = k log(2) + 2 atanh(s) with
// s = (f - q) / (f + q), where f = p 2^-k and the integer k is chosen so that f is close to q: one pass, with one
// division and no logarithm for each event. k is the difference of the bit patterns of p and q, which approximates the
// base-2 logarithm of their ratio.
//
// Logits. The naive equation is KL(p || q) = sum_i p_i (log p_i - log q_i) with p = softmax(p_logits) and
// q = softmax(q_logits). Here g = q_logits - p_logits, c is any shift near log(Z_q / Z_p), and expectations are under p:
// with F = E[phi(g - c)], G = E[g - c] and x = F + G, KL(p || q) = F - (x - log1p(x)), where phi(d) = e^d - 1 - d: one
// pass, with two exponentials for each event.

typedef Real Vector __attribute__((vector_size(VECTOR_BYTES)));
typedef Signed Integers __attribute__((vector_size(VECTOR_BYTES)));
typedef Unsigned Bits __attribute__((vector_size(VECTOR_BYTES)));

static const size_t LANES = VECTOR_BYTES / sizeof(Real);
// The events that are summed in Real before a sum in float64: in the first-level cache, and few additions for a lane.
static const size_t BLOCK = 32 * VECTOR_BYTES;
static const Unsigned ONE_BITS = IS_DOUBLE ? Unsigned(0x3ff0000000000000) : Unsigned(0x3f800000);
static const Unsigned SIGN = Unsigned(1) << (8 * sizeof(Real) - 1);
static const double LOG2 = 0.6931471805599453;

// The smallest probability that the fast path accepts, which keeps its intermediate results normal numbers.
static const Real SMALLEST = IS_DOUBLE ? 0x1p-960 : 0x1p-120;

// The fast path of logits accepts MIN_D < d < MAX_D. Exponentials of less than SMALLEST_EXPONENT are 0.
static const Real MAX_SHIFT = 64, MAX_D = 20, MIN_D = -80, SMALLEST_EXPONENT = IS_DOUBLE ? -700 : -87;

// Coefficients of g(w), where 2 atanh(s) = 2s + s w g(w) with w = s^2: interpolation at the Chebyshev nodes of
// 0 <= w <= 0.04. The errors are 4e-15 in float64 and 6e-9 in float32, and s w g is at most 1.4% of the logarithm.
static const Real ATANH[] = {
#if IS_DOUBLE
    0.6666666666666694, 0.39999999999341623, 0.2857142883402187, 0.22222183019460265,
    0.1818459724682636, 0.1528402127843849,  0.1511560315350166,
#else
    0.6666666627560318f, 0.4000031220679577f, 0.2853266492817339f, 0.23748943314264234f,
#endif
};

// Coefficients of phi(r) / r^2: interpolation at the Chebyshev nodes of |r| <= log(2)/2. The errors are 3e-18 in float64
// and 3e-9 in float32.
static const Real PHI[] = {
#if IS_DOUBLE
    0.5,
    0.1666666666666667,
    0.04166666666666667,
    0.008333333333326136,
    0.001388888888888375,
    0.00019841269874815834,
    2.480158732554432e-05,
    2.7557255406285044e-06,
    2.7557273647451087e-07,
    2.5105214474751413e-08,
    2.0914685161418067e-09,
#else
    0.5000000013463886f,     0.16666666681621095f,   0.041666464944505696f,
    0.008333310927615311f,   0.0013933647862928863f, 0.00019890988455544567f,
#endif
};

INLINE Vector load(const Real *from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

INLINE Vector all(Real value) { return value - (Vector){}; }

// The first `count` numbers, followed by `fill`.
INLINE Vector load_part(const Real *from, size_t count, Real fill) {
    Vector vector = all(fill);
    std::memcpy(&vector, from, count * sizeof(Real));
    return vector;
}

INLINE double sum(Vector vector) {
    double total = 0;
    for (size_t i = 0; i < LANES; i++) total += vector[i];
    return total;
}

INLINE Real least(Vector vector) {
    Real smallest = vector[0];
    for (size_t i = 1; i < LANES; i++) smallest = vector[i] < smallest ? vector[i] : smallest;
    return smallest;
}

template <size_t N>
INLINE Vector horner(Vector w, const Real (&coefficients)[N]) {
    Vector total = all(coefficients[N - 1]);
    for (size_t k = N - 1; k-- > 0;) total = total * w + coefficients[k];
    return total;
}

// Probabilities.

// An integer k, and f = p 2^-k within a factor of 1.5 of q.
INLINE void scale_near(Vector p, Vector q, Vector &k, Vector &f) {
    Bits bits_p = (Bits)p, bits_q = (Bits)q;
#if VECTOR_BYTES == 64
    Integers rounded = (Integers)(bits_p - bits_q + (Unsigned(1) << (MANTISSA - 1))) >> MANTISSA;
    k = __builtin_convertvector(rounded, Vector);
    f = (Vector)(bits_p - ((Bits)rounded << MANTISSA));
#else  // without a shift and a conversion of 64-bit integers: k + 2048 (or 256) in the highest bits, after rounding
    Bits exponent = (bits_p - bits_q + ((Unsigned(1) << (MANTISSA - 1)) + SIGN)) >> MANTISSA;
    const Real magic = IS_DOUBLE ? 4503599627370496.0 : 8388608.0;
    const Unsigned magic_bits = Unsigned(IS_DOUBLE ? 1023 + 52 : 127 + 23) << MANTISSA;
    k = (Vector)(exponent | magic_bits) - (magic + Real(IS_DOUBLE ? 2048 : 256));
    f = (Vector)(bits_p - ((exponent << MANTISSA) - SIGN));
#endif
}

// s, and p phi(log(q/p)) without its parts k p log(2) and `phi_tail`, and k p.
//
// p phi(log(q/p)) = p log(p/q) - p + q. Where p and q are within a factor of 1.5, k and `gap` are 0 and the term is
// s ((p - q) + p w g(w)), so that the terms do not cancel.
INLINE void phi_head(Vector p, Vector q, Vector &s, Vector &head, Vector &k_p) {
    Vector k, f;
    scale_near(p, q, k, f);
    Vector gap = p - f, excess = p - q;
    s = (f - q) / (f + q);
    head = s * (excess + gap) - gap;
    k_p = p * k;
}

// p s w g(w) with w = s^2: the part of p phi(log(q/p)) that contains the polynomial.
INLINE Vector phi_tail(Vector p, Vector s) {
    Vector w = s * s;
    return p * (s * (w * horner(w, ATANH)));
}

// The sums over a block, and whether an entry requires `special_block`.
static Sums block(const Real *p, const Real *q, size_t n, bool &special) {
    Vector heads = {}, tails = {}, k_p_sum = {}, mass = {}, excess = {};
    Vector smallest = all(1);
#define STEP(a, b, pad)                                                                                               \
    Vector s, head, k_p;                                                                                               \
    phi_head(a, b, s, head, k_p);                                                                                      \
    heads += head;                                                                                                     \
    k_p_sum += k_p;                                                                                                    \
    mass += a - pad;                                                                                                   \
    excess += a - b;                                                                                                   \
    smallest = a < smallest ? a : smallest;                                                                            \
    smallest = b < smallest ? b : smallest;
    size_t whole = n - n % LANES;
#if VECTOR_BYTES < 64
    // The chain of operations of a term is longer than the reorder window of processors without AVX-512, so that two
    // loops that each compute a part of the term are faster than one.
    Vector kept[BLOCK / LANES];
    for (size_t i = 0; i < whole; i += LANES) {
        Vector a = load(p + i), b = load(q + i);
        STEP(a, b, Real(0));
        kept[i / LANES] = s;
    }
    for (size_t i = 0; i < whole; i += LANES) tails += phi_tail(load(p + i), kept[i / LANES]);
#else
    for (size_t i = 0; i < whole; i += LANES) {
        Vector a = load(p + i), b = load(q + i);
        STEP(a, b, Real(0));
        tails += phi_tail(a, s);
    }
#endif
    if (whole < n) {  // the missing entries are p = q = 1, whose terms are 0, and do not count in the mass
        Vector a = load_part(p + whole, n - whole, 1), b = load_part(q + whole, n - whole, 1);
        Vector pad = a - load_part(p + whole, n - whole, 0);
        STEP(a, b, pad);
        tails += phi_tail(a, s);
    }
#undef STEP
    double total = sum(heads) + (LOG2 * sum(k_p_sum) + sum(tails));
    special = !(least(smallest) >= SMALLEST) || !(total == total);  // an invalid entry makes the total nan
    return {total, sum(mass), sum(excess)};
}

// The sums over a block with zeros, subnormal numbers or invalid entries (nan).
static __attribute__((noinline)) Sums special_block(const Real *p, const Real *q, size_t n) {
    Real kept_p[BLOCK], kept_q[BLOCK];
    size_t kept = 0;
    double total = 0, mass = 0, excess = 0;
    for (size_t i = 0; i < n; i++) {
        double a = p[i], b = q[i];
        if (a >= SMALLEST && b >= SMALLEST) {
            kept_p[kept] = p[i];
            kept_q[kept++] = q[i];
            continue;
        }
        mass += a;
        excess += a - b;
        if (!(a >= 0 && b >= 0))
            total = NAN;
        else if (a == 0 || b == 0)
            total += a == 0 ? b : HUGE_VAL;
        else {
            double log_ratio = std::log(a / b);  // of normal numbers: the quotient has no cancellation
            if (!(a / b > 1e-300 && a / b < 1e300)) log_ratio = std::log(0x1p200 * a) - std::log(0x1p200 * b);
            double gap = a - b;
            if (std::fabs(gap) <= 0.2 * b) {  // phi by its series, because p log(p/q) and p - q would cancel
                double s = gap / (a + b), w = s * s, tail = 0;
                for (int k = 29; k >= 3; k -= 2) tail = tail * w + 2.0 / k;
                total += s * (gap + a * (w * tail));
            } else
                total += a * log_ratio - gap;
        }
    }
    if (kept) {
        bool special;
        Sums fast = block(kept_p, kept_q, kept, special);
        total += fast.total;
        mass += fast.mass;
        excess += fast.excess;
    }
    return {total, mass, excess};
}

// total + value, and the accumulated rounding error of the sum, by Knuth's TwoSum (compensated summation).
INLINE void compensated_add(double &total, double &lost, double value) {
    double after = total + value, added = after - total;
    lost += (total - (after - added)) + (value - added);
    total = after;
}

static Sums prob_sums(const void *p_row, const void *q_row, size_t n) {
    const Real *p = static_cast<const Real *>(p_row), *q = static_cast<const Real *>(q_row);
    double total = 0, total_lost = 0, mass = 0, mass_lost = 0, excess = 0;
    bool infinite = false;
    for (size_t start = 0; start < n; start += BLOCK) {
        size_t length = n - start < BLOCK ? n - start : BLOCK;
        bool special;
        Sums sums = block(p + start, q + start, length, special);
        if (special) {
            sums = special_block(p + start, q + start, length);
            if (sums.total == HUGE_VAL) {  // the compensation would compute inf - inf
                infinite = true;
                sums.total = 0;
            }
        }
        compensated_add(total, total_lost, sums.total);
        compensated_add(mass, mass_lost, sums.mass);
        excess += sums.excess;
    }
    return {infinite && total == total ? HUGE_VAL : total + total_lost, mass + mass_lost, excess};
}

// Logits.

// r, 2^k and phi(r) with d = r + k log(2) and |r| <= log(2)/2.
INLINE void split_exponent(Vector d, Vector &r, Vector &power, Vector &tail) {
    // Adding 1.5 * 2^MANTISSA rounds to an integer, which the smallest bits of the sum contain.
    const Real magic = IS_DOUBLE ? 6755399441055744.0 : 12582912.0;
    Vector shifted = d * Real(1 / LOG2) + magic;
    Vector k = shifted - magic;
    power = (Vector)(((Bits)shifted << MANTISSA) + ONE_BITS);
#if HAS_FMA
    r = d - k * Real(LOG2);
#else  // two parts of log(2), because the product is rounded
    const Real high = IS_DOUBLE ? 0x1.62e42fefa38p-1 : 0x1.62e4p-1f;
    r = (d - k * high) - k * Real(LOG2 - double(high) + (IS_DOUBLE ? 2.3190468138462996e-17 : 0));
#endif
    tail = (r * r) * horner(r, PHI);
}

// e^a for an a that is not large and positive.
INLINE Vector exponential(Vector a) {
    Vector r, power, tail;
    split_exponent(a > SMALLEST_EXPONENT ? a : all(SMALLEST_EXPONENT), r, power, tail);
    return a > SMALLEST_EXPONENT ? power + power * (r + tail) : all(0);
}

struct LogitSums {
    double weights, phi_sum, mean;
};

// The sums of w = exp(p - top), w phi(d) and w d with d = q - p - shift over a block, and whether an event requires
// `special_logits`.
static LogitSums logits_block(const Real *p, const Real *q, size_t n, Real top, Real shift, bool &special) {
    Vector weights = {}, phi_sum = {}, mean = {};
    Integers fast = ~(Integers){};
#define STEP(a, b, KEEP)                                                                                              \
    Vector weight = KEEP(exponential(a - top)), d = (b - a) - shift, r, power, tail;                                  \
    split_exponent(d, r, power, tail);                                                                                 \
    Vector phi = ((power - Real(1)) - d) + power * r + power * tail; /* for a small d this is phi(r) */               \
    fast &= (d < MAX_D) & (d > MIN_D);                                                                                 \
    weights += weight;                                                                                                 \
    phi_sum += weight * phi;                                                                                           \
    mean += weight * d;
#define WHOLE(weight) (weight)
#define PART(weight) ((weight) * present)
    size_t whole = n - n % LANES;
    for (size_t i = 0; i < whole; i += LANES) {
        Vector a = load(p + i), b = load(q + i);
        STEP(a, b, WHOLE)
    }
    if (whole < n) {  // the missing events have the weight 0
        Vector a = load_part(p + whole, n - whole, top), b = load_part(q + whole, n - whole, top + shift);
        Real ones[LANES];
        for (size_t i = 0; i < LANES; i++) ones[i] = i < n - whole;
        Vector present = load(ones);
        b = present == Real(0) ? a + shift : b;  // d is 0 whatever the rounding of top + shift
        STEP(a, b, PART)
    }
#undef STEP
#undef WHOLE
#undef PART
    Signed every = -1;
    for (size_t i = 0; i < LANES; i++) every &= fast[i];
    special = !every;
    return {sum(weights), sum(phi_sum), sum(mean)};
}

// The sums over a block with impossible events, q far above p, or invalid logits (nan). `infinite` is set where an event
// that is possible under p is impossible under q; the second sum then omits its infinite term.
static __attribute__((noinline)) LogitSums special_logits(const Real *p, const Real *q, size_t n, Real top, Real shift,
                                                          bool &infinite) {
    Real kept_p[BLOCK], kept_q[BLOCK];
    size_t kept = 0;
    double weights = 0, phi_sum = 0, mean = 0;
    for (size_t i = 0; i < n; i++) {
        Real d = (q[i] - p[i]) - shift;
        if (d < MAX_D && d > MIN_D) {
            kept_p[kept] = p[i];
            kept_q[kept++] = q[i];
            continue;
        }
        double weight_q = std::exp(double(q[i]) - shift - top);
        if (p[i] == -HUGE_VAL) {
            phi_sum += weight_q;  // the term of p = 0; it is 0 where both are impossible
            continue;
        }
        double weight = std::exp(double(p[i]) - top);
        weights += weight;
        if (q[i] == -HUGE_VAL) {
            infinite = true;
            phi_sum -= weight;
        } else {
            double gap = double(q[i]) - double(p[i]) - shift;
            mean += weight * gap;
            phi_sum += weight_q - weight - weight * gap;
        }
    }
    if (kept) {
        bool special;
        LogitSums fast = logits_block(kept_p, kept_q, kept, top, shift, special);
        weights += fast.weights;
        phi_sum += fast.phi_sum;
        mean += fast.mean;
    }
    return {weights, phi_sum, mean};
}

static LogitSums logit_sums(const Real *p, const Real *q, size_t n, Real top, Real shift, bool &infinite) {
    LogitSums all_sums = {0, 0, 0};
    for (size_t start = 0; start < n; start += BLOCK) {
        size_t length = n - start < BLOCK ? n - start : BLOCK;
        bool special;
        LogitSums sums = logits_block(p + start, q + start, length, top, shift, special);
        if (special) sums = special_logits(p + start, q + start, length, top, shift, infinite);
        all_sums.weights += sums.weights;
        all_sums.phi_sum += sums.phi_sum;
        all_sums.mean += sums.mean;
    }
    return all_sums;
}

// The largest entry of a block that is not nan; -inf without any.
static Real largest_of(const Real *p, size_t n) {
    Vector top = all(-HUGE_VAL);
    size_t whole = n - n % LANES;
    for (size_t i = 0; i < whole; i += LANES) {
        Vector a = load(p + i);
        top = a > top ? a : top;
    }
    if (whole < n) {
        Vector a = load_part(p + whole, n - whole, -HUGE_VAL);
        top = a > top ? a : top;
    }
    Real largest = top[0];
    for (size_t i = 1; i < LANES; i++) largest = top[i] > largest ? top[i] : largest;
    return largest;
}

// The index of the largest entry that is not nan; 0 without any.
static size_t index_of_largest(const Real *p, size_t n) {
    Real top = -HUGE_VAL;
    size_t at = 0;
    for (size_t start = 0; start < n; start += BLOCK) {
        size_t length = n - start < BLOCK ? n - start : BLOCK;
        Real largest = largest_of(p + start, length);
        if (largest > top) {
            top = largest;
            at = start;
        }
    }
    while (at < n && p[at] != top) at++;
    return at < n ? at : 0;
}

// x - log1p(x).
static double log1p_residual(double x) {
    if (std::fabs(x) >= 0.01) return x - std::log1p(x);
    double total = 0;
    for (int k = 9; k >= 2; k--) total = 1.0 / k - x * total;
    return x * x * total;
}

struct Normalized {
    double kl;         // nan where the general implementation is required
    Real top;          // max(p)
    double weights;    // sum(exp(p - max(p)))
    Real shift;        // log(Z_q / Z_p) = shift + rest
    double rest;
};

static Normalized normalized(const Real *p, const Real *q, size_t n) {
    size_t largest = index_of_largest(p, n);
    Real top = p[largest];
    // The first shift is q - p at the most probable event. Where the sums show that it is inaccurate, they give a better
    // shift.
    Real shift = q[largest] - top;
    if (!(std::fabs(shift) < HUGE_VAL)) shift = 0;
    // q - p loses the digits of the smaller logits where the logits of p and of q are at different levels.
    bool is_near = std::fabs(top) < HUGE_VAL && std::fabs(shift) <= MAX_SHIFT;
    for (int attempt = 0; is_near && attempt < 4; attempt++) {
        bool infinite = false;
        LogitSums sums = logit_sums(p, q, n, top, shift, infinite);
        double x = (sums.phi_sum + sums.mean) / sums.weights, phi_mean = sums.phi_sum / sums.weights;
        double kl = x < 1 ? phi_mean - log1p_residual(x) : std::log1p(x) - sums.mean / sums.weights;
        if (infinite) kl = HUGE_VAL;
        double rest = std::log1p(x);
        // The rounding error of the sums is negligible relative to kl.
        if (x < HUGE_VAL && phi_mean <= 8 * kl * (1 + x)) return {kl, top, sums.weights, shift, rest};
        if (rest < HUGE_VAL) shift += Real(rest);
    }
    return {NAN, top, NAN, shift, NAN};
}

static double kl_logits(const void *p, const void *q, size_t n, double tolerance) {
    Normalized found = normalized(static_cast<const Real *>(p), static_cast<const Real *>(q), n);
    if (tolerance < HUGE_VAL) {
        double log_mass = std::log(found.weights) + found.top;
        double mass_q = std::exp(log_mass + found.shift + found.rest);
        if (!(std::fabs(std::exp(log_mass) - 1) <= tolerance && std::fabs(mass_q - 1) <= tolerance)) return NAN;
    }
    return found.kl;
}

// The gradient with respect to the logits of p, factor exp(p - top) (log(p/q) - kl); 0 for impossible events.
INLINE Vector p_gradient(Vector p, Vector q, Real top, Real shift, Real rest, Real kl, Real factor) {
    Vector d = ((q - p) - shift) - rest;
    Vector derivative = factor * exponential(p - top) * (-d - kl);
    return (d < Real(HUGE_VAL)) & (d > -Real(HUGE_VAL)) ? derivative : all(factor * 0);
}

// The gradient with respect to the logits of q, factor (exp(q - shift - rest - top) - exp(p - top)), from the difference
// of the exponents where they are nearly equal.
INLINE Vector q_gradient(Vector p, Vector q, Real top, Real shift, Real rest, Real, Real factor) {
    Vector d = ((q - p) - shift) - rest, weight = exponential(p - top), r, power, tail;
    Integers close = (d < Real(1)) & (d > Real(-1));
    split_exponent(close ? d : all(0), r, power, tail);
    Vector near = weight * ((power - Real(1)) + power * (r + tail));
    Vector far = exponential(((q - shift) - rest) - top) - weight;
    return factor * (close ? near : far);
}

#define GRADIENT(name, of_row, valid)                                                                                 \
    static void name(const void *p_row, const void *q_row, size_t n, double gradient, void *out_row) {                \
        const Real *p = static_cast<const Real *>(p_row), *q = static_cast<const Real *>(q_row);                      \
        Real *out = static_cast<Real *>(out_row);                                                                      \
        Normalized found = normalized(p, q, n);                                                                        \
        Real factor = Real(valid ? gradient / found.weights : NAN), rest = Real(found.rest), kl = Real(found.kl);     \
        size_t whole = n - n % LANES;                                                                                  \
        for (size_t i = 0; i < whole; i += LANES) {                                                                    \
            Vector part = of_row(load(p + i), load(q + i), found.top, found.shift, rest, kl, factor);                 \
            std::memcpy(out + i, &part, sizeof part);                                                                  \
        }                                                                                                              \
        if (whole < n) {                                                                                               \
            Vector a = load_part(p + whole, n - whole, found.top), b = load_part(q + whole, n - whole, found.top);    \
            Vector part = of_row(a, b, found.top, found.shift, rest, kl, factor);                                      \
            std::memcpy(out + whole, &part, (n - whole) * sizeof(Real));                                               \
        }                                                                                                              \
    }
GRADIENT(grad_p, p_gradient, found.kl < HUGE_VAL)
GRADIENT(grad_q, q_gradient, found.kl == found.kl)
#undef GRADIENT
