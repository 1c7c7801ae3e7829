// KL of gamma, beta and Dirichlet distributions in float64, for one instruction set; residuals.h is included before this file.
//
// The formulas are those of kullback/numerics/log_gamma.py, where they are derived and the constants are explained:
// D(a, b) is KL between two gamma distributions with equal means and the shapes a and b, from Binet's function
// J(z) = sum w z / (z^2 + u) over the nodes u and the weights w, with five steps of the recurrence where z < 5.

static const double NODES[] = {0.011634137702813867, 0.26736940950685045, 1.074005514404511,  2.77898651883113,
                               5.8808660678356635,   11.163522741534404,  20.054191737462645, 36.00866792173704};
static const double WEIGHTS[] = {0.07718084665825808,    0.005874843350625122,   0.0002713667579757889,
                                 6.212543415270509e-06,  6.377696802735569e-08,  2.4584442082628637e-10,
                                 2.465985553853074e-13,  2.4876063998771705e-17};
static const double COUNTS[] = {0, 1, 2, 3, 4, 5, 6, 7};
static const double IS_STEP[] = {1, 1, 1, 1, 1, 0, 0, 0};

// Coefficients of t(w), where d coth(d/2) = 2 + w t(w) with w = d^2, for 0 <= w <= 1.
static const double COTH[] = {0.16666666666666666,    -0.002777777777777717,  6.613756613629047e-05,
                              -1.653439143213831e-06, 4.175347367276074e-08,  -1.0567515797272753e-09,
                              2.666192398240283e-11,  -6.131944508238831e-13};

static double log1p_residual_of(double x) {
    if (!(x > -0.64 && x < 1)) return x - std::log1p(x);
    double s = x / (2 + x), w = s * s, g = WIDE_ATANH[12];
    for (int k = 11; k >= 0; k--) g = g * w + WIDE_ATANH[k];
    return s * (x - s * (s * g));
}

// log(u / v), where `difference` is u - v.
static double log_of_ratio(double u, double v, double difference) {
    double change = difference / v;
    return std::fabs(change) < 0.5 ? std::log1p(change) : std::log(u / v);
}

// u/v - 1 - log(u/v).
static double residual_of(double u, double v, double difference) {
    double change = difference / v;
    return change > -0.5 ? log1p_residual_of(change) : change - log_of_ratio(u, v, difference);
}

// e^d - 1 - d.
static double phi_of(double d) {
    if (std::fabs(d) >= 1) return std::expm1(d) - d;
    double w = d * d, t = COTH[7];
    for (int k = 6; k >= 0; k--) t = t * w + COTH[k];
    double u = d - w * t;
    return d * (u / (2 - u));
}

// The sum of w term(u) over the nodes of the quadrature.
template <class Term>
INLINE double over_nodes(Term term) {
    Vector total = {};
    for (size_t i = 0; i < 8; i += LANES) total += load(WEIGHTS + i) * term(load(NODES + i));
    return sum(total);
}

// The sum of step(n) for n = 0, ..., 4.
template <class Step>
INLINE double over_steps(Step step) {
    Vector total = {};
    for (size_t i = 0; i < 8; i += LANES) {
        Vector terms = step(load(COUNTS + i));
        total += load(IS_STEP + i) == Real(0) ? all(0) : terms;
    }
    return sum(total);
}

// D(a, b), with h = b - a.
static double equal_mean(double a, double b, double h) {
    double total = residual_of(b, a, h) / 2;
    if (a < 5 || b < 5) {
        bool all_near = std::fabs(h) < 0.5 * b * (a + 1);  // the argument y decreases with n
        total += over_steps([=](Vector n) {
            Vector x = a + n, z = b + n, y = h / (z * (x + Real(1)));
            Integers near = (y < Real(0.5)) & (y > Real(-0.5));
            Vector close = (h / x) * y * Real(0.5) - (z + Real(0.5)) * log1p_series(near ? -y : all(0));
            if (all_near) return close;
            Vector log = log_quotient(x * (z + Real(1)), z * (x + Real(1)));
            Vector far = (z + Real(0.5)) * log + h * ((x + Real(0.5)) / (x * (x + Real(1))));
            return near ? close : far;
        });
        a += 5;
        b += 5;
    }
    double p = 1 / a, q = 1 / b;
    double nodes = over_nodes([=](Vector u) {
        Vector x = u * (p * p), y = u * (q * q);
        return (Real(1) - u * (p * (p + 2 * q))) / ((Real(1) + x) * (Real(1) + x) * (Real(1) + y));
    });
    return total + (h * p) * (h * p) * (q * nodes);
}

// The derivative of D(a, b) with respect to b: digamma(b) - digamma(a) - log(b/a).
static double equal_mean_slope(double a, double b, double h) {
    double total = h / a / (2 * b);
    if (a < 5 || b < 5) {
        bool all_near = std::fabs(h) < 0.5 * b * (a + 1);
        total += over_steps([=](Vector n) {
            Vector x = a + n, z = b + n, x1 = x + Real(1), z1 = z + Real(1), y = h / (z * x1);
            Integers near = (y < Real(0.5)) & (y > Real(-0.5));
            Vector close = h * (1 + h) / (Real(2) * x * z * x1 * z1) - log1p_series(near ? -y : all(0));
            if (all_near) return close;
            Vector far = log_quotient(x * z1, z * x1) + h * (Real(1) / (x * z) + Real(1) / (x1 * z1)) * Real(0.5);
            return near ? close : far;
        });
        a += 5;
        b += 5;
    }
    double p = 1 / a, q = 1 / b;
    double nodes = over_nodes([=](Vector u) {
        Vector x = u * (p * p), y = u * (q * q), x1 = Real(1) + x, y1 = Real(1) + y;
        return (Real(1) - x - y - Real(3) * x * y) / (x1 * x1 * (y1 * y1));
    });
    return total + h * (p * q * ((p + q) * nodes));
}

// The derivative of D(a, b) when a and b change by equal amounts, for |h| < b/2.
static double equal_mean_curvature(double a, double b, double h) {
    double total = -(h / a) * (h / a) / (2 * b);
    if (a < 5 || b < 5) {
        total += over_steps([=](Vector n) {
            Vector x = a + n, z = b + n, relative = h / x / (x + Real(1));
            Vector square = relative * relative * ((x * x - x - Real(1) - h) / (z + Real(1)) / z) * Real(0.5);
            return square - log1p_series(-h / z / (x + Real(1)));
        });
        a += 5;
        b += 5;
    }
    double p = 1 / a, q = 1 / b;
    double nodes = over_nodes([=](Vector u) {
        Vector x = Real(1) / (Real(1) + u * (p * p)), y = Real(1) / (Real(1) + u * (q * q)), z = Real(1) - u * (p * q);
        Vector both = u * (p + q);
        return x * x * y *
               (q * y * (z * z - both * (p + q)) +
                2 * p * x * ((Real(1) - u * (p * p)) * z - 2 * p * both));
    });
    return total - (h * p) * (h * p) * (q * nodes);
}

// trigamma(a) - 1/a: 1/(2 a^2) + J''(a).
static double trigamma_rest(double a) {
    double total = 0.5 / (a * a);
    if (a < 5) {
        total += over_steps([=](Vector n) {
            Vector c = a + n, product = c * (c + Real(1));
            return Real(0.5) / (product * product);
        });
        a += 5;
    }
    double p = 1 / a;
    double nodes = over_nodes([=](Vector u) {
        Vector x = u * (p * p), x1 = Real(1) + x;
        return (Real(2) - Real(6) * x) / (x1 * x1 * x1);
    });
    return total + p * p * (p * nodes);
}

// D(a + e, b + f) - D(a, b), with h = b - a and g = f - e, for e < a/8 and f < b/8.
static double equal_mean_increment(double a, double b, double h, double e, double f, double g) {
    static const double nodes[] = {0.04691007703066802, 0.23076534494715845, 0.5, 0.7692346550528415, 0.9530899229693319};
    static const double weights[] = {0.11846344252809464, 0.23931433524968315, 0.28444444444444433, 0.23931433524968315,
                                     0.11846344252809464};
    bool near = std::fabs(h) < 0.4 * b;
    double total = 0;
    for (int k = 0; k < 5; k++) {
        double at_a = a + nodes[k] * e, at_b = b + nodes[k] * f, at_h = h + nodes[k] * g;
        double change = near ? e * equal_mean_curvature(at_a, at_b, at_h) : -e * at_h * trigamma_rest(at_a);
        total += weights[k] * ((near ? g : f) * equal_mean_slope(at_a, at_b, at_h) + change);
    }
    return total;
}

// Whether a concentration is inside the range in which no intermediate result overflows or underflows.
INLINE bool moderate(double x) { return x >= 0x1p-300 && x <= 0x1p300; }

// Gamma(concentration, rate): k2 phi(log(r2/r1) + log(k1/k2)) + D(k1, k2).
static bool gamma_form(const double *x, double *kl) {
    double k1 = x[0], r1 = x[1], k2 = x[2], r2 = x[3];
    if (!(moderate(k1) && moderate(r1) && moderate(k2) && moderate(r2))) return false;
    double d = log_of_ratio(r2, r1, r2 - r1) + log_of_ratio(k1, k2, k1 - k2);
    *kl = k2 * phi_of(d) + equal_mean(k1, k2, k2 - k1);
    return std::fabs(*kl) < HUGE_VAL;
}

static void gamma_slopes(const double *x, double *g) {
    double k1 = x[0], r1 = x[1], k2 = x[2], r2 = x[3], h = k2 - k1;
    double d = log_of_ratio(r2, r1, r2 - r1) + log_of_ratio(k1, k2, k1 - k2), e = k2 * std::expm1(d);
    g[0] = e / k1 - h * trigamma_rest(k1);
    g[1] = -e / r1;
    g[2] = equal_mean_slope(k1, k2, h) - d;
    g[3] = e / r2;
}

// Dirichlet(concentration) of n categories: sum_i b_i phi(log(a_i/b_i) - log(A/B)) + sum_i D(a_i, b_i) - D(A, B). D of the
// largest concentration may nearly cancel D of the sums, so that their difference is computed as an increment.
template <class Number>
static bool dirichlet_row(const Number *a, const Number *b, size_t n, double *kl) {
    double sum_a = 0, sum_b = 0, sum_h = 0;
    size_t top = 0;
    for (size_t i = 0; i < n; i++) {
        if (!(moderate(a[i]) && moderate(b[i]))) return false;
        sum_a += a[i];
        sum_b += b[i];
        sum_h += double(b[i]) - double(a[i]);
        if (a[i] > a[top]) top = i;
    }
    double log_sums = log_of_ratio(sum_a, sum_b, -sum_h), total = 0, rest_a = 0, rest_b = 0, rest_h = 0;
    for (size_t i = 0; i < n; i++) {
        double x = a[i], y = b[i], h = y - x;
        total += y * phi_of(log_of_ratio(x, y, -h) - log_sums);
        if (i == top) continue;
        total += equal_mean(x, y, h);
        rest_a += x;
        rest_b += y;
        rest_h += h;
    }
    double x = a[top], y = b[top], h = y - x;
    if (rest_a < x / 8 && rest_b < y / 8)
        total -= equal_mean_increment(x, y, h, rest_a, rest_b, rest_h);
    else
        total -= equal_mean(sum_a, sum_b, sum_h) - equal_mean(x, y, h);
    *kl = total;
    return std::fabs(total) < HUGE_VAL && total >= 0;
}

// upstream times the derivatives with respect to a and b; an output may be null. The derivatives by the largest
// concentration are computed from the sums of the others, because its terms nearly cancel the terms of the sums.
template <class Number>
static void dirichlet_slopes(const Number *a, const Number *b, size_t n, double upstream, Number *by_a, Number *by_b) {
    size_t top = 0;
    for (size_t i = 1; i < n; i++)
        if (a[i] > a[top]) top = i;
    double rest_a = 0, rest_b = 0, rest_h = 0;
    for (size_t i = 0; i < n; i++) {
        if (i == top) continue;
        rest_a += a[i];
        rest_b += b[i];
        rest_h += double(b[i]) - double(a[i]);
    }
    double top_a = a[top], top_b = b[top], sum_a = top_a + rest_a, sum_b = top_b + rest_b, sum_h = top_b - top_a + rest_h;
    double log_sums = log_of_ratio(sum_a, sum_b, -sum_h), whole_a = 0, whole_b = 0;
    if (by_a) {
        whole_a = trigamma_rest(sum_a);
        double trigamma_gap = rest_a / top_a / sum_a + (trigamma_rest(top_a) - whole_a);
        by_a[top] = Number(upstream * (rest_h * (1 / sum_a + whole_a) - (top_b - top_a) * trigamma_gap));
    }
    if (by_b) {
        whole_b = equal_mean_slope(sum_a, sum_b, sum_h);
        double h = top_b - top_a, change;
        // Of two expressions for the same number, the one whose terms are smaller.
        if (std::fabs(h) < rest_a)
            change = equal_mean_slope(top_a, top_b, h) - whole_b - (log_of_ratio(top_a, top_b, -h) - log_sums);
        else
            change = equal_mean_slope(top_a, sum_a, rest_a) - equal_mean_slope(top_b, sum_b, rest_b) -
                     std::log1p(-rest_a / sum_a) + std::log1p(-rest_b / sum_b);
        by_b[top] = Number(upstream * change);
    }
    for (size_t i = 0; i < n; i++) {
        if (i == top) continue;
        double x = a[i], y = b[i], h = y - x;
        if (by_a) by_a[i] = Number(upstream * ((sum_h / sum_a - h / x) - h * trigamma_rest(x) + sum_h * whole_a));
        if (by_b)
            by_b[i] = Number(upstream *
                             (equal_mean_slope(x, y, h) - (log_of_ratio(x, y, -h) - log_sums) - whole_b));
    }
}

// Beta(concentration1, concentration0): two categories.
static bool beta_form(const double *x, double *kl) { return dirichlet_row(x, x + 2, 2, kl); }

static void beta_slopes(const double *x, double *g) { dirichlet_slopes(x, x + 2, 2, 1.0, g, g + 2); }
