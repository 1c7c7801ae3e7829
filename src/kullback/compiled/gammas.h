// KL of gamma, beta, Dirichlet and Gumbel distributions in float64, for one instruction set; residuals.h is included
// before this file. Each lane of a vector is one pair of distributions, or one category of a pair.
//
// The formulas are those of kullback/numerics/log_gamma.py, where they are derived and the constants are explained:
// D(a, b) is KL between two gamma distributions with equal means and the shapes a and b, from Binet's function
// J(z) = sum w z / (z^2 + u) over the nodes u and the weights w, with five steps of the recurrence where z < 5.

static const int NODE_COUNT = 8, STEP_COUNT = 5;
static const double NODES[] = {0.011634137702813867, 0.26736940950685045, 1.074005514404511,  2.77898651883113,
                               5.8808660678356635,   11.163522741534404,  20.054191737462645, 36.00866792173704};
static const double WEIGHTS[] = {0.07718084665825808,    0.005874843350625122,   0.0002713667579757889,
                                 6.212543415270509e-06,  6.377696802735569e-08,  2.4584442082628637e-10,
                                 2.465985553853074e-13,  2.4876063998771705e-17};
static const double EULER = 0.5772156649015329;

INLINE bool any(Integers lanes) {
    Signed found = 0;
    for (size_t i = 0; i < LANES; i++) found |= lanes[i];
    return found;
}

// `count` numbers at this distance from each other; the other lanes repeat the first number.
template <class Number>
INLINE Vector gather(const Number *from, size_t distance, size_t count) {
    Vector vector = all(from[0]);
    if (count == LANES)
        for (size_t j = 0; j < LANES; j++) vector[j] = from[j * distance];
    else
        for (size_t j = 1; j < count; j++) vector[j] = from[j * distance];
    return vector;
}

template <class Number>
INLINE void scatter(Vector vector, Number *to, size_t distance, size_t count) {
    if (count == LANES)
        for (size_t j = 0; j < LANES; j++) to[j * distance] = Number(vector[j]);
    else
        for (size_t j = 0; j < count; j++) to[j * distance] = Number(vector[j]);
}

// phi(d) and e^d - 1 for d < 709; a larger d is not valid.
INLINE Integers phi_of(Vector d, Vector &phi, Vector &expm1) {
    Vector r, power, tail;
    split_exponent(d > SMALLEST_EXPONENT ? d : all(SMALLEST_EXPONENT), r, power, tail);
    phi = ((power - Real(1)) - d) + power * r + power * tail;
    expm1 = (power - Real(1)) + (power * r + power * tail);
    return d < Real(709);
}

// Whether a concentration is inside the range in which no intermediate result overflows or underflows.
INLINE Integers moderate(Vector x) { return (x >= Real(0x1p-300)) & (x <= Real(0x1p300)); }

// A step of the recurrence from x to x1 = x + 1 and from z to z1 = z + 1 with h = z - x: the residual of
// (x z1)/(z x1) = 1 - y.
struct Step {
    Vector x, z, x1, z1, inverse, y;  // inverse: 1/(x x1 z z1)
    Residual ratio;
    Integers near;
    INLINE Step at(Vector a, Vector b, Vector h, int n) {
        Step step;
        step.x = a + Real(n);
        step.z = b + Real(n);
        step.x1 = a + Real(n + 1);
        step.z1 = b + Real(n + 1);
        Vector u = step.x * step.z1, v = step.z * step.x1;
        step.inverse = Real(1) / (u * v);
        Vector inverse_v = step.inverse * u;
        step.y = h * inverse_v;
        step.ratio = residual_by(u, v, -h, inverse_v);
        step.near = (step.y < Real(0.5)) & (step.y > Real(-0.5));
        return step;
    }
};

// The sum of w term(u) over the nodes, where a term is a quotient; two terms share a division.
template <class Quotient>
INLINE Vector over_nodes(Quotient quotient) {
    Vector total = {};
    for (int i = 0; i < NODE_COUNT; i += 2) {
        Vector above, below, other_above, other_below;
        quotient(NODES[i], above, below);
        quotient(NODES[i + 1], other_above, other_below);
        total += (WEIGHTS[i] * above * other_below + WEIGHTS[i + 1] * other_above * below) / (below * other_below);
    }
    return total;
}

// D(a, b), with h = b - a and the residual of b/a.
INLINE Vector equal_mean(Vector a, Vector b, Vector h, Residual ratio) {
    Vector total = ratio.phi * Real(0.5);
    Integers small = (a < Real(5)) | (b < Real(5));
    if (any(small)) {
        Vector steps = {};
        for (int n = 0; n < STEP_COUNT; n++) {
            Step at = Step::at(a, b, h, n);
            Vector middle = at.z + Real(0.5), inverse_product = at.inverse * (at.z * at.z1);
            Vector close = (h * at.x1 * inverse_product) * at.y * Real(0.5) - middle * at.ratio.phi;
            Vector far = middle * at.ratio.log + h * (at.x + Real(0.5)) * inverse_product;
            steps += at.near ? close : far;
        }
        total += small ? steps : all(0);
        a = small ? a + Real(STEP_COUNT) : a;
        b = small ? b + Real(STEP_COUNT) : b;
    }
    Vector p = Real(1) / a, q = Real(1) / b;
    Vector nodes = over_nodes([=](Real u, Vector &above, Vector &below) {
        Vector x = Real(1) + u * (p * p), y = Real(1) + u * (q * q);
        above = Real(1) - u * (p * (p + Real(2) * q));
        below = x * x * y;
    });
    return total + (h * p) * (h * p) * (q * nodes);
}

struct Slopes {
    Vector by_b, rest;  // the derivative of D(a, b) by b: digamma(b) - digamma(a) - log(b/a); and trigamma(a) - 1/a
};

INLINE Slopes slopes_of(Vector a, Vector b, Vector h) {
    Vector half = h * Real(0.5), inverse_a = Real(1) / a;
    Vector slope = half * inverse_a / b, rest = inverse_a * inverse_a * Real(0.5);
    Integers small = (a < Real(5)) | (b < Real(5));
    if (any(small)) {
        Vector steps = {}, rest_steps = {};
        for (int n = 0; n < STEP_COUNT; n++) {
            Step at = Step::at(a, b, h, n);
            Vector close = half * (Real(1) + h) * at.inverse - at.ratio.phi;
            Vector far = at.ratio.log + half * at.inverse * (at.x1 * at.z1 + at.x * at.z);
            Vector inverse_product = at.inverse * (at.z * at.z1);
            steps += at.near ? close : far;
            rest_steps += inverse_product * inverse_product * Real(0.5);
        }
        slope += small ? steps : all(0);
        rest += small ? rest_steps : all(0);
        a = small ? a + Real(STEP_COUNT) : a;
        b = small ? b + Real(STEP_COUNT) : b;
    }
    Vector p = Real(1) / a, q = Real(1) / b, rest_nodes = {}, nodes = {};
    for (int i = 0; i < NODE_COUNT; i++) {
        Vector x = NODES[i] * (p * p), y = NODES[i] * (q * q), x1 = Real(1) + x, y1 = Real(1) + y;
        Vector share = WEIGHTS[i] / (x1 * x1 * x1 * (y1 * y1));
        nodes += share * x1 * (Real(1) - x - y - Real(3) * x * y);
        rest_nodes += share * (y1 * y1) * (Real(2) - Real(6) * x);
    }
    return {slope + h * (p * q * ((p + q) * nodes)), rest + p * p * (p * rest_nodes)};
}

// The derivative of D(a, b) when a and b change by equal amounts, for |h| < b/2.
INLINE Vector equal_mean_curvature(Vector a, Vector b, Vector h) {
    Vector relative = h / a, total = -(relative * relative) / (Real(2) * b);
    Integers small = (a < Real(5)) | (b < Real(5));
    if (any(small)) {
        Vector steps = {};
        for (int n = 0; n < STEP_COUNT; n++) {
            Step at = Step::at(a, b, h, n);
            Vector change = h * at.inverse * (at.z * at.z1), x = at.x;
            steps += change * change * ((x * x - x - Real(1) - h) * (at.inverse * (x * at.x1))) * Real(0.5) - at.ratio.phi;
        }
        total += small ? steps : all(0);
        a = small ? a + Real(STEP_COUNT) : a;
        b = small ? b + Real(STEP_COUNT) : b;
    }
    Vector p = Real(1) / a, q = Real(1) / b, nodes = {};
    for (int i = 0; i < NODE_COUNT; i++) {
        Real u = NODES[i];
        Vector x = Real(1) / (Real(1) + u * (p * p)), y = Real(1) / (Real(1) + u * (q * q)), z = Real(1) - u * (p * q);
        Vector both = u * (p + q);
        Vector of_q = q * y * (z * z - both * (p + q));
        Vector of_p = Real(2) * p * x * ((Real(1) - u * (p * p)) * z - Real(2) * p * both);
        nodes += WEIGHTS[i] * (x * x * y * (of_q + of_p));
    }
    return total - (h * p) * (h * p) * (q * nodes);
}

// D(a + e, b + f) - D(a, b), with h = b - a and g = f - e, for e < a/8 and f < b/8: Gauss-Legendre quadrature of the
// derivative along the segment, with five nodes.
static __attribute__((noinline)) double equal_mean_increment(double a, double b, double h, double e, double f, double g) {
    static const double nodes[] = {0.04691007703066802, 0.23076534494715845, 0.5, 0.7692346550528415, 0.9530899229693319,
                                   0.5, 0.5, 0.5};
    static const double weights[] = {0.11846344252809464, 0.23931433524968315, 0.28444444444444433, 0.23931433524968315,
                                     0.11846344252809464, 0, 0, 0};
    bool near = std::fabs(h) < 0.4 * b;
    Vector total = {};
    for (size_t k = 0; k < 5; k += LANES) {
        Vector s = load(nodes + k), at_a = a + s * e, at_b = b + s * f, at_h = h + s * g;
        Slopes slopes = slopes_of(at_a, at_b, at_h);
        Vector change = near ? e * equal_mean_curvature(at_a, at_b, at_h) : -e * at_h * slopes.rest;
        total += load(weights + k) * ((near ? g : f) * slopes.by_b + change);
    }
    return sum(total);
}

// Binet's function J(a) = lgamma(a) - (a - 1/2) log(a) + a - log(2 pi)/2, and its derivatives: the parts of the closed
// forms that are computed by array operations. Functions are stored as forms of one input, and their gradient is the next
// derivative.
struct Binet {
    static const int count = 1;
    Vector value_of, slope, curvature;
    INLINE Binet at(Vector a) {
        Binet out = {};
        Integers small = a < Real(5);
        if (any(small)) {
            Vector steps = {}, slopes = {}, curvatures = {};
            for (int n = 0; n < STEP_COUNT; n++) {
                Vector c = a + Real(n), c1 = a + Real(n + 1), inverse = Real(1) / (c * c1);
                Vector log = residual_by(c1, c, all(1), inverse * c1).log;
                steps += (c + Real(0.5)) * log - Real(1);
                slopes += log - (c + Real(0.5)) * inverse;
                curvatures += inverse * inverse * Real(0.5);
            }
            out.value_of = small ? steps : all(0);
            out.slope = small ? slopes : all(0);
            out.curvature = small ? curvatures : all(0);
            a = small ? a + Real(STEP_COUNT) : a;
        }
        Vector p = Real(1) / a, nodes = {}, slopes = {}, curvatures = {};
        for (int i = 0; i < NODE_COUNT; i++) {
            Vector x = NODES[i] * (p * p), inverse = Real(1) / (Real(1) + x), share = WEIGHTS[i] * inverse;
            nodes += share;
            slopes += share * inverse * (Real(1) - x);
            curvatures += share * inverse * inverse * (Real(2) - Real(6) * x);
        }
        out.value_of += p * nodes;
        out.slope -= p * p * slopes;
        out.curvature += p * p * (p * curvatures);
        return out;
    }
    INLINE Integers value(const Vector *x, Vector &value) {
        value = at(x[0]).value_of;
        return moderate(x[0]);
    }
    INLINE void gradient(const Vector *x, Vector *g) { g[0] = at(x[0]).slope; }
};

struct BinetSlope {
    static const int count = 1;
    INLINE Integers value(const Vector *x, Vector &value) {
        value = Binet::at(x[0]).slope;
        return moderate(x[0]);
    }
    INLINE void gradient(const Vector *x, Vector *g) { g[0] = Binet::at(x[0]).curvature; }
};

// D(a, b) of the inputs a, b and h = b - a.
struct EqualMean {
    static const int count = 3;
    INLINE Integers value(const Vector *x, Vector &value) {
        value = equal_mean(x[0], x[1], x[2], residual(x[1], x[0], x[2]));
        return moderate(x[0]) & moderate(x[1]) & finite(value);
    }
    INLINE void gradient(const Vector *x, Vector *g) {
        Slopes slopes = slopes_of(x[0], x[1], x[2]);
        g[0] = -x[2] * slopes.rest;
        g[1] = slopes.by_b;
        g[2] = all(0);
    }
};

// Gamma(concentration, rate): k2 phi(log(r2/r1) - log(k2/k1)) + D(k1, k2).
struct Gamma {
    static const int count = 4;
    INLINE Integers value(const Vector *x, Vector &kl) {
        Vector h = x[2] - x[0], phi, expm1;
        Residual ratio = residual(x[2], x[0], h);
        Integers valid = phi_of(residual(x[3], x[1], x[3] - x[1]).log - ratio.log, phi, expm1);
        kl = x[2] * phi + equal_mean(x[0], x[2], h, ratio);
        return valid & finite(kl) & moderate(x[0]) & moderate(x[1]) & moderate(x[2]) & moderate(x[3]);
    }
    INLINE void gradient(const Vector *x, Vector *g) {
        Vector h = x[2] - x[0], phi, expm1, d = residual(x[3], x[1], x[3] - x[1]).log - residual(x[2], x[0], h).log;
        phi_of(d, phi, expm1);
        Slopes slopes = slopes_of(x[0], x[2], h);
        Vector e = x[2] * expm1;
        g[0] = e / x[0] - h * slopes.rest;
        g[1] = -e / x[1];
        g[2] = slopes.by_b - d;
        g[3] = e / x[3];
    }
};

// An exponential distribution is a gamma distribution with the concentration 1.
struct ExponentialGamma {
    static const int count = 3;
    INLINE Integers value(const Vector *x, Vector &kl) {
        Vector whole[4] = {all(1), x[0], x[1], x[2]};
        return Gamma::value(whole, kl);
    }
    INLINE void gradient(const Vector *x, Vector *g) {
        Vector whole[4] = {all(1), x[0], x[1], x[2]}, slopes[4];
        Gamma::gradient(whole, slopes);
        for (int k = 0; k < 3; k++) g[k] = slopes[k + 1];
    }
};

struct GammaExponential {
    static const int count = 3;
    INLINE Integers value(const Vector *x, Vector &kl) {
        Vector whole[4] = {x[0], x[1], all(1), x[2]};
        return Gamma::value(whole, kl);
    }
    INLINE void gradient(const Vector *x, Vector *g) {
        Vector whole[4] = {x[0], x[1], all(1), x[2]}, slopes[4];
        Gamma::gradient(whole, slopes);
        g[0] = slopes[0];
        g[1] = slopes[1];
        g[2] = slopes[3];
    }
};

// Gumbel(loc, scale): phi(L - z) + R + phi(log r) with r = scale1/scale2, z = (loc1 - loc2)/scale2, the residual
// R = lgamma(1 + r) - (r - 1) digamma(2) = R(2, r - 1) and L = lgamma(1 + r).
struct Gumbel {
    static const int count = 4;
    Vector r, h, z, end;
    INLINE Gumbel parts_of(const Vector *x) {
        Gumbel parts;
        parts.r = x[1] / x[3];
        parts.h = (x[1] - x[3]) / x[3];
        parts.z = (x[0] - x[2]) / x[3];
        parts.end = Real(1) + parts.r;
        return parts;
    }
    INLINE Vector residual_of_log_gamma(Vector end, Vector h) {
        return end * residual(all(2), end, -h).phi + equal_mean(all(2), end, h, residual(end, all(2), h));
    }
    INLINE Integers value(const Vector *x, Vector &kl) {
        Gumbel parts = parts_of(x);
        Vector rest = residual_of_log_gamma(parts.end, parts.h), phi, expm1;
        Vector d = (parts.h * Real(1 - EULER) + rest) - parts.z;
        Integers valid = phi_of(d, phi, expm1), large = d >= Real(709);
        // e^d may be the largest part of a finite KL, or above the largest number.
        Vector root = exponential(large ? (d < Real(1400) ? d : all(1400)) * Real(0.5) : all(0));
        kl = large ? root * root : phi + (rest + residual(x[1], x[3], x[1] - x[3]).phi);
        return (valid | large) & finite(x[0]) & finite(x[2]) & moderate(x[1]) & moderate(x[3]) & moderate(parts.r);
    }
    INLINE void gradient(const Vector *x, Vector *g) {
        Gumbel parts = parts_of(x);
        Vector d = (parts.h * Real(1 - EULER) + residual_of_log_gamma(parts.end, parts.h)) - parts.z, phi, e;
        Integers valid = phi_of(d, phi, e);
        e = valid ? e : all(HUGE_VAL);
        Vector change = residual(parts.end, all(2), parts.h).log + slopes_of(all(2), parts.end, parts.h).by_b;
        Vector digamma = change + Real(1 - EULER);  // of 1 + r
        g[0] = -e / x[3];
        g[1] = (e * digamma + (change + parts.h / parts.r)) / x[3];
        g[2] = -g[0];
        g[3] = (e * (parts.z - parts.r * digamma) - (parts.r * change + parts.h)) / x[3];
    }
};

// The largest concentration of p with its pair, and the sums of all and of all other concentrations.
struct Totals {
    Vector top_a, top_b, sum_a, sum_b, sum_h, rest_a, rest_b, rest_h;
};

// D(A, B) - D(a, b) of the sums and of the largest concentrations, as an increment where the two may nearly cancel.
INLINE Vector change_of(Totals t, Residual sums, Vector of_top) {
    Vector change = equal_mean(t.sum_a, t.sum_b, t.sum_h, sums) - of_top;
    Integers inner = (t.rest_a < t.top_a * Real(0.125)) & (t.rest_b < t.top_b * Real(0.125));
    if (any(inner))
        for (size_t j = 0; j < LANES; j++)
            if (inner[j])
                change[j] = equal_mean_increment(t.top_a[j], t.top_b[j], t.top_b[j] - t.top_a[j], t.rest_a[j],
                                                 t.rest_b[j], t.rest_h[j]);
    return change;
}

// Dirichlet(concentration): sum_i b_i phi(log(a_i/b_i) - log(A/B)) + sum_i D(a_i, b_i) - D(A, B), with the sums A and B.
INLINE Integers category_terms(Vector x, Vector y, Vector log_sums, Vector &phi_term, Vector &of_shapes) {
    Vector h = y - x, phi, expm1;
    Residual ratio = residual(y, x, h);
    Integers valid = phi_of(log_sums - ratio.log, phi, expm1);
    phi_term = y * phi;
    of_shapes = equal_mean(x, y, h, ratio);
    return valid;
}

// The derivatives with respect to the concentrations x and y of a category that is not the largest.
INLINE void category_slopes(Vector x, Vector y, Totals t, Residual sums, Slopes whole, Vector &by_x, Vector &by_y) {
    Vector h = y - x;
    Slopes slopes = slopes_of(x, y, h);
    by_x = (t.sum_h / t.sum_a - h / x) - h * slopes.rest + t.sum_h * whole.rest;
    by_y = slopes.by_b + (residual(y, x, h).log - sums.log) - whole.by_b;
}

// The derivatives with respect to the largest concentrations, from the sums of the others, because their terms nearly
// cancel the terms of the sums.
INLINE void top_slopes(Totals t, Residual sums, Slopes whole, Vector &by_a, Vector &by_b) {
    Vector h = t.top_b - t.top_a;
    Slopes top = slopes_of(t.top_a, t.top_b, h);
    Vector gap = t.rest_a / t.top_a / t.sum_a + (top.rest - whole.rest);
    by_a = t.rest_h * (Real(1) / t.sum_a + whole.rest) - h * gap;
    // Of two expressions for the same number, the one whose terms are smaller.
    by_b = top.by_b - whole.by_b + (residual(t.top_b, t.top_a, h).log - sums.log);
    Integers other = ~((h < t.rest_a) & (-h < t.rest_a));
    if (any(other)) {
        Vector of_a = slopes_of(t.top_a, t.sum_a, t.rest_a).by_b - residual(t.top_a, t.sum_a, -t.rest_a).log;
        Vector of_b = slopes_of(t.top_b, t.sum_b, t.rest_b).by_b - residual(t.top_b, t.sum_b, -t.rest_b).log;
        by_b = other ? of_a - of_b : by_b;
    }
}

// Rows of at most MOST_CATEGORIES concentrations, a row in each lane.
static const size_t MOST_CATEGORIES = 8;

INLINE Totals totals_of(const Vector *a, const Vector *b, size_t n, Integers &top, Integers &valid) {
    Totals t = {a[0], b[0], {}, {}, {}, {}, {}, {}};
    top = (Integers){};
    valid = ~(Integers){};
    for (size_t i = 0; i < n; i++) {
        valid &= moderate(a[i]) & moderate(b[i]);
        t.sum_a += a[i];
        t.sum_b += b[i];
        t.sum_h += b[i] - a[i];
        Integers larger = a[i] > t.top_a;
        t.top_a = larger ? a[i] : t.top_a;
        t.top_b = larger ? b[i] : t.top_b;
        top = larger ? (Integers){} + Signed(i) : top;
    }
    for (size_t i = 0; i < n; i++) {
        Integers rest = top != Signed(i);
        t.rest_a += rest ? a[i] : all(0);
        t.rest_b += rest ? b[i] : all(0);
        t.rest_h += rest ? b[i] - a[i] : all(0);
    }
    return t;
}

INLINE Integers dirichlet_lanes(const Vector *a, const Vector *b, size_t n, Vector &kl) {
    Integers top, valid;
    Totals t = totals_of(a, b, n, top, valid);
    Residual sums = residual(t.sum_b, t.sum_a, t.sum_h);
    Vector total = {}, of_top = {};
    for (size_t i = 0; i < n; i++) {
        Vector phi_term, of_shapes;
        valid &= category_terms(a[i], b[i], sums.log, phi_term, of_shapes);
        Integers rest = top != Signed(i);
        total += phi_term + (rest ? of_shapes : all(0));
        of_top = rest ? of_top : of_shapes;
    }
    kl = total - change_of(t, sums, of_top);
    return valid & finite(kl) & (kl >= Real(0));
}

INLINE void dirichlet_lane_slopes(const Vector *a, const Vector *b, size_t n, Vector *by_a, Vector *by_b) {
    Integers top, valid;
    Totals t = totals_of(a, b, n, top, valid);
    Residual sums = residual(t.sum_b, t.sum_a, t.sum_h);
    Slopes whole = slopes_of(t.sum_a, t.sum_b, t.sum_h);
    Vector top_by_a, top_by_b;
    top_slopes(t, sums, whole, top_by_a, top_by_b);
    for (size_t i = 0; i < n; i++) {
        category_slopes(a[i], b[i], t, sums, whole, by_a[i], by_b[i]);
        Integers rest = top != Signed(i);
        by_a[i] = rest ? by_a[i] : top_by_a;
        by_b[i] = rest ? by_b[i] : top_by_b;
    }
}

// Beta(concentration1, concentration0): two categories.
struct Beta {
    static const int count = 4;
    INLINE Integers value(const Vector *x, Vector &kl) { return dirichlet_lanes(x, x + 2, 2, kl); }
    INLINE void gradient(const Vector *x, Vector *g) { dirichlet_lane_slopes(x, x + 2, 2, g, g + 2); }
};

// A row of more concentrations, a category in each lane.

template <class Number>
INLINE Totals totals_of_row(const Number *a, const Number *b, size_t n, size_t &top, bool &valid) {
    double sum_a = 0, sum_b = 0, sum_h = 0, rest_a = 0, rest_b = 0, rest_h = 0;
    top = 0;
    for (size_t i = 0; i < n; i++) {
        double x = a[i], y = b[i];
        valid = valid && x >= 0x1p-300 && x <= 0x1p300 && y >= 0x1p-300 && y <= 0x1p300;
        if (a[i] > a[top]) top = i;
        sum_a += x;
        sum_b += y;
        sum_h += y - x;
    }
    for (size_t i = 0; i < n; i++) {
        if (i == top) continue;
        rest_a += a[i];
        rest_b += b[i];
        rest_h += double(b[i]) - double(a[i]);
    }
    return {all(a[top]), all(b[top]), all(sum_a), all(sum_b), all(sum_h), all(rest_a), all(rest_b), all(rest_h)};
}

template <class Number>
static __attribute__((noinline)) bool dirichlet_row(const Number *a, const Number *b, size_t n, double *kl) {
    size_t top;
    bool valid = true;
    Totals t = totals_of_row(a, b, n, top, valid);
    if (!valid) return false;
    Residual sums = residual(t.sum_b, t.sum_a, t.sum_h);
    Vector total = {};
    double of_top = 0;
    Integers fits = ~(Integers){};
    for (size_t i = 0; i < n; i += LANES) {
        size_t length = n - i < LANES ? n - i : LANES;
        Vector phi_term, of_shapes;
        fits &= category_terms(gather(a + i, 1, length), gather(b + i, 1, length), sums.log, phi_term, of_shapes);
        if (top >= i && top < i + LANES) {
            of_top = of_shapes[top - i];
            of_shapes[top - i] = 0;
        }
        Vector terms = phi_term + of_shapes;
        for (size_t j = length; j < LANES; j++) terms[j] = 0;
        total += terms;
    }
    *kl = sum(total) - change_of(t, sums, all(of_top))[0];
    return !any(~fits) && std::fabs(*kl) < HUGE_VAL && *kl >= 0;
}

template <class Number>
static __attribute__((noinline)) void dirichlet_row_slopes(const Number *a, const Number *b, size_t n, double upstream,
                                                           Number *by_a, Number *by_b) {
    size_t top;
    bool valid = true;
    Totals t = totals_of_row(a, b, n, top, valid);
    Residual sums = residual(t.sum_b, t.sum_a, t.sum_h);
    Slopes whole = slopes_of(t.sum_a, t.sum_b, t.sum_h);
    Vector by_x, by_y;
    for (size_t i = 0; i < n; i += LANES) {
        size_t length = n - i < LANES ? n - i : LANES;
        category_slopes(gather(a + i, 1, length), gather(b + i, 1, length), t, sums, whole, by_x, by_y);
        if (by_a) scatter(upstream * by_x, by_a + i, 1, length);
        if (by_b) scatter(upstream * by_y, by_b + i, 1, length);
    }
    top_slopes(t, sums, whole, by_x, by_y);
    if (by_a) by_a[top] = Number(upstream * by_x[0]);
    if (by_b) by_b[top] = Number(upstream * by_y[0]);
}

// KL of pairs of rows of n concentrations, where `step` is n, or 0 if a side has a single row.
template <class Number>
static bool dirichlet_rows(const Number *a, size_t step_a, const Number *b, size_t step_b, size_t rows, size_t n,
                           double *out) {
    if (n > MOST_CATEGORIES) {
        for (size_t i = 0; i < rows; i++)
            if (!dirichlet_row(a + i * step_a, b + i * step_b, n, out + i)) return false;
        return true;
    }
    Integers valid = ~(Integers){};
    for (size_t i = 0; i < rows; i += LANES) {
        size_t length = rows - i < LANES ? rows - i : LANES;
        Vector x[MOST_CATEGORIES], y[MOST_CATEGORIES], kl;
        for (size_t k = 0; k < n; k++) {
            x[k] = gather(a + i * step_a + k, step_a, length);
            y[k] = gather(b + i * step_b + k, step_b, length);
        }
        valid &= dirichlet_lanes(x, y, n, kl);
        scatter(kl, out + i, 1, length);
    }
    return !any(~valid);
}

// upstream times the derivatives with respect to the concentrations; an output may be null.
template <class Number>
static void dirichlet_rows_slopes(const Number *a, size_t step_a, const Number *b, size_t step_b, size_t rows, size_t n,
                                  const double *upstream, Number *by_a, Number *by_b) {
    if (n > MOST_CATEGORIES) {
        for (size_t i = 0; i < rows; i++)
            dirichlet_row_slopes(a + i * step_a, b + i * step_b, n, upstream[i], by_a ? by_a + i * n : nullptr,
                                 by_b ? by_b + i * n : nullptr);
        return;
    }
    for (size_t i = 0; i < rows; i += LANES) {
        size_t length = rows - i < LANES ? rows - i : LANES;
        Vector x[MOST_CATEGORIES], y[MOST_CATEGORIES], by_x[MOST_CATEGORIES], by_y[MOST_CATEGORIES];
        for (size_t k = 0; k < n; k++) {
            x[k] = gather(a + i * step_a + k, step_a, length);
            y[k] = gather(b + i * step_b + k, step_b, length);
        }
        Vector factor = gather(upstream + i, 1, length);
        dirichlet_lane_slopes(x, y, n, by_x, by_y);
        for (size_t k = 0; k < n; k++) {
            if (by_a) scatter(factor * by_x[k], by_a + i * n + k, n, length);
            if (by_b) scatter(factor * by_y[k], by_b + i * n + k, n, length);
        }
    }
}
