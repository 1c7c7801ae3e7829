// Closed forms of KL for arrays of parameters, elementwise, for one type and one instruction set, and their gradients.
// residuals.h is included before this file, and gammas.h for float64.
//
// A form has `count` inputs: the parameters of p, and then those of q. It writes a value or the gradient with respect to
// each input, and returns for each lane whether the inputs are inside the domain and inside the range of the fast path.

// Normal(loc, scale), and LogNormal: R + (((loc1 - loc2)/scale2)^2 + ((scale1 - scale2)/scale2)^2)/2 with the residual
// R = phi(log(scale1/scale2)), because phi(2 d) = 2 phi(d) + (e^d - 1)^2.
struct Normal {
    static const int count = 4;
    INLINE Integers value(const Vector *x, Vector &kl) {
        Vector shift = x[0] - x[2], change = x[1] - x[3], z = shift / x[3], t = change / x[3];
        kl = residual(x[1], x[3], change).phi + (z * z + t * t) * Real(0.5);
        return ordinary(x[1]) & ordinary(x[3]);
    }
    INLINE void gradient(const Vector *x, Vector *g) {
        Vector z = (x[0] - x[2]) / x[3], t = (x[1] - x[3]) / x[3], sum = x[1] + x[3];
        g[0] = z / x[3];
        g[1] = t * sum / (x[1] * x[3]);
        g[2] = -g[0];
        g[3] = -(t * (sum / x[3]) + z * z) / x[3];
    }
};

// The KL of another distribution to Normal(loc, scale): the KL to the normal distribution of equal mean and standard
// deviation, which is a constant of the family, and the KL between the two normal distributions.
template <class From>
struct ToNormal {
    static const int count = From::count + 2;
    INLINE Integers value(const Vector *x, Vector &kl) {
        Vector y[4] = {{}, {}, x[From::count], x[From::count + 1]};
        Integers valid = From::moments(x, y[0], y[1]) & Normal::value(y, kl);
        kl = kl + Real(From::constant);
        return valid;
    }
    INLINE void gradient(const Vector *x, Vector *g) {
        Vector y[4] = {{}, {}, x[From::count], x[From::count + 1]}, slopes[4];
        From::moments(x, y[0], y[1]);
        Normal::gradient(y, slopes);
        From::pulled_back(x, slopes[0], slopes[1], g);
        g[From::count] = slopes[2];
        g[From::count + 1] = slopes[3];
    }
};

// Laplace(loc, scale): the variance is 2 scale^2.
struct LaplaceMoments {
    static const int count = 2;
    static constexpr double constant = 0.07236494292470008, root = 1.4142135623730951;
    INLINE Integers moments(const Vector *x, Vector &mean, Vector &deviation) {
        mean = x[0];
        deviation = Real(root) * x[1];
        return ordinary(x[1]);
    }
    INLINE void pulled_back(const Vector *, Vector by_mean, Vector by_deviation, Vector *g) {
        g[0] = by_mean;
        g[1] = Real(root) * by_deviation;
    }
};

// Gumbel(loc, scale): the mean is loc + euler scale, and the variance is (pi scale)^2/6.
struct GumbelMoments {
    static const int count = 2;
    static constexpr double constant = 0.09057301953851256, euler = 0.5772156649015329, root = 1.2825498301618641;
    INLINE Integers moments(const Vector *x, Vector &mean, Vector &deviation) {
        mean = x[0] + Real(euler) * x[1];
        deviation = Real(root) * x[1];
        return ordinary(x[1]);
    }
    INLINE void pulled_back(const Vector *, Vector by_mean, Vector by_deviation, Vector *g) {
        g[0] = by_mean;
        g[1] = Real(euler) * by_mean + Real(root) * by_deviation;
    }
};

// Uniform(low, high): the variance is (high - low)^2/12.
struct UniformMoments {
    static const int count = 2;
    static constexpr double constant = 0.17648520831067258, root = 0.2886751345948129;
    INLINE Integers moments(const Vector *x, Vector &mean, Vector &deviation) {
        Vector width = x[1] - x[0];
        mean = x[0] + width * Real(0.5);
        deviation = Real(root) * width;
        return ordinary(width);
    }
    INLINE void pulled_back(const Vector *, Vector by_mean, Vector by_deviation, Vector *g) {
        g[0] = Real(0.5) * by_mean - Real(root) * by_deviation;
        g[1] = Real(0.5) * by_mean + Real(root) * by_deviation;
    }
};

// Exponential(rate): the mean and the standard deviation are 1/rate.
struct ExponentialMoments {
    static const int count = 1;
    static constexpr double constant = 0.4189385332046727;
    INLINE Integers moments(const Vector *x, Vector &mean, Vector &deviation) {
        mean = deviation = Real(1) / x[0];
        return ordinary(x[0]);
    }
    INLINE void pulled_back(const Vector *x, Vector by_mean, Vector by_deviation, Vector *g) {
        g[0] = -(by_mean + by_deviation) / (x[0] * x[0]);
    }
};

// HalfNormal(scale): the formula of two normals with equal locations.
struct HalfNormal {
    static const int count = 2;
    INLINE Integers value(const Vector *x, Vector &kl) {
        Vector change = x[0] - x[1], t = change / x[1];
        kl = residual(x[0], x[1], change).phi + t * t * Real(0.5);
        return ordinary(x[0]) & ordinary(x[1]);
    }
    INLINE void gradient(const Vector *x, Vector *g) {
        Vector t = (x[0] - x[1]) / x[1], sum = x[0] + x[1];
        g[0] = t * sum / (x[0] * x[1]);
        g[1] = -t * (sum / x[1]) / x[1];
    }
};

// Exponential(rate): phi(log(rate2/rate1)).
struct Exponential {
    static const int count = 2;
    INLINE Integers value(const Vector *x, Vector &kl) {
        kl = residual(x[1], x[0], x[1] - x[0]).phi;
        return ordinary(x[0]) & ordinary(x[1]);
    }
    INLINE void gradient(const Vector *x, Vector *g) {
        Vector t = (x[0] - x[1]) / x[0];
        g[0] = t / x[0];
        g[1] = -t / x[1];
    }
};

// Poisson(rate): rate1 phi(log(rate2/rate1)).
struct Poisson {
    static const int count = 2;
    INLINE Integers value(const Vector *x, Vector &kl) {
        kl = x[0] * residual(x[1], x[0], x[1] - x[0]).phi;
        return ordinary(x[0]) & ordinary(x[1]);
    }
    INLINE void gradient(const Vector *x, Vector *g) {
        Vector change = x[1] - x[0];
        g[0] = -residual(x[1], x[0], change).log;
        g[1] = change / x[1];
    }
};

// Bernoulli(probs): p1 phi(log(p2/p1)) + (1 - p1) phi(log((1 - p2)/(1 - p1))).
struct Bernoulli {
    static const int count = 2;
    INLINE Integers value(const Vector *x, Vector &kl) {
        Vector change = x[1] - x[0], p = Real(1) - x[0], q = Real(1) - x[1];
        kl = x[0] * residual(x[1], x[0], change).phi + p * residual(q, p, -change).phi;
        return ordinary(x[0]) & ordinary(x[1]) & ordinary(p) & ordinary(q);
    }
    INLINE void gradient(const Vector *x, Vector *g) {
        Vector change = x[1] - x[0], p = Real(1) - x[0], q = Real(1) - x[1];
        g[0] = residual(q, p, -change).log - residual(x[1], x[0], change).log;
        g[1] = change / (x[1] * q);
    }
};

// Geometric(probs): the KL of two Bernoulli distributions, divided by p1.
struct Geometric {
    static const int count = 2;
    INLINE Integers value(const Vector *x, Vector &kl) {
        Integers valid = Bernoulli::value(x, kl);
        kl = kl / x[0];
        return valid;
    }
    INLINE void gradient(const Vector *x, Vector *g) {
        Vector kl;
        Bernoulli::value(x, kl);
        Bernoulli::gradient(x, g);
        g[0] = (g[0] - kl / x[0]) / x[0];
        g[1] = g[1] / x[0];
    }
};

// Uniform(low, high): log((high2 - low2)/(high1 - low1)), where the second interval contains the first.
struct Uniform {
    static const int count = 4;
    INLINE Integers value(const Vector *x, Vector &kl) {
        Vector p = x[1] - x[0], q = x[3] - x[2];
        kl = residual(q, p, (x[3] - x[1]) + (x[0] - x[2])).log + Real(0); // 0 for equal intervals, not -0
        return (x[2] <= x[0]) & (x[1] <= x[3]) & ordinary(p) & ordinary(q);
    }
    INLINE void gradient(const Vector *x, Vector *g) {
        g[0] = Real(1) / (x[1] - x[0]);
        g[1] = -g[0];
        g[3] = Real(1) / (x[3] - x[2]);
        g[2] = -g[3];
    }
};

// Pareto(scale, alpha): phi(log(alpha2/alpha1)) + alpha2 log(scale1/scale2) for scale1 >= scale2.
struct Pareto {
    static const int count = 4;
    INLINE Integers value(const Vector *x, Vector &kl) {
        kl = residual(x[3], x[1], x[3] - x[1]).phi + x[3] * residual(x[0], x[2], x[0] - x[2]).log;
        return (x[0] >= x[2]) & ordinary(x[0]) & ordinary(x[1]) & ordinary(x[2]) & ordinary(x[3]);
    }
    INLINE void gradient(const Vector *x, Vector *g) {
        Vector t = (x[1] - x[3]) / x[1];
        g[0] = x[3] / x[0];
        g[1] = t / x[1];
        g[2] = -x[3] / x[2];
        g[3] = residual(x[0], x[2], x[0] - x[2]).log - t / x[3];
    }
};

// Bernoulli(logits), from the less probable event of p, whose probability is e/(1 + e): with g the difference of the
// logits and x = p (e^g - 1), KL = p phi(g) - (x - log(1 + x)) = log(1 + x) - p g.
struct BernoulliLogits {
    static const int count = 2;
    Vector p, other, g, phi, x;
    Integers flipped, valid;
    INLINE BernoulliLogits parts_of(const Vector *given) {
        BernoulliLogits parts;
        parts.flipped = given[0] > Real(0);
        Vector a = parts.flipped ? -given[0] : given[0], b = parts.flipped ? -given[1] : given[1], r, power, tail;
        Vector g = b - a, e = exponential(a);
        parts.valid = (g < Real(80)) & (g > Real(-80)) & (a > Real(-80));
        split_exponent(parts.valid ? g : all(0), r, power, tail);
        parts.p = e / (Real(1) + e);
        parts.other = Real(1) / (Real(1) + e);
        parts.g = g;
        parts.phi = ((power - Real(1)) - g) + power * r + power * tail;
        parts.x = parts.p * (parts.phi + g);
        return parts;
    }
    INLINE Integers value(const Vector *given, Vector &kl) {
        BernoulliLogits parts = parts_of(given);
        Integers near = parts.x < Real(1);
        Vector close = parts.p * parts.phi - log1p_series(near ? parts.x : all(0));
        Vector far = log_quotient(near ? all(1) : Real(1) + parts.x, all(1)) - parts.p * parts.g;
        kl = near ? close : far;
        return parts.valid;
    }
    INLINE void gradient(const Vector *given, Vector *g) {
        BernoulliLogits parts = parts_of(given);
        g[0] = -parts.p * parts.other * (parts.flipped ? -parts.g : parts.g);
        Vector change = parts.x * parts.other / (Real(1) + parts.x);
        g[1] = parts.flipped ? -change : change;
    }
};

// Normal(loc, log_scale): phi(d)/2 + z^2/2 with d = 2 (log_scale1 - log_scale2) and z = (loc1 - loc2) e^-log_scale2.
struct NormalLogScale {
    static const int count = 4;
    Vector z, precision, phi, expm1;  // the precision is e^-log_scale2
    Integers valid;
    INLINE NormalLogScale parts_of(const Vector *x) {
        NormalLogScale parts;
        Vector d = Real(2) * (x[1] - x[3]), r, power, tail;
        parts.valid = (d < Real(80)) & (d > Real(-80)) & (x[3] < Real(80)) & (x[3] > Real(-80));
        split_exponent(parts.valid ? d : all(0), r, power, tail);
        parts.phi = ((power - Real(1)) - d) + power * r + power * tail;
        parts.expm1 = parts.phi + d;
        parts.precision = exponential(parts.valid ? -x[3] : all(0));
        parts.z = (x[0] - x[2]) * parts.precision;
        return parts;
    }
    INLINE Integers value(const Vector *x, Vector &kl) {
        NormalLogScale parts = parts_of(x);
        kl = (parts.phi + parts.z * parts.z) * Real(0.5);
        return parts.valid;
    }
    INLINE void gradient(const Vector *x, Vector *g) {
        NormalLogScale parts = parts_of(x);
        g[0] = parts.z * parts.precision;
        g[1] = parts.expm1;
        g[2] = -g[0];
        g[3] = -(parts.expm1 + parts.z * parts.z);
    }
};

// phi(-d) and e^-d - 1 for d >= 0.
INLINE void decay(Vector d, Vector &phi, Vector &expm1) {
    Vector r, power, tail, exponent = -d > SMALLEST_EXPONENT ? -d : all(SMALLEST_EXPONENT);
    split_exponent(exponent, r, power, tail);
    phi = ((power - Real(1)) + d) + power * r + power * tail;
    expm1 = phi - d;
}

// Laplace(loc, scale): phi(log(scale1/scale2)) + scale1/scale2 phi(-d) with d = |loc1 - loc2|/scale1.
struct Laplace {
    static const int count = 4;
    INLINE Integers value(const Vector *x, Vector &kl) {
        Vector shift = x[0] - x[2], phi, expm1;
        decay((shift < Real(0) ? -shift : shift) / x[1], phi, expm1);
        kl = residual(x[1], x[3], x[1] - x[3]).phi + x[1] / x[3] * phi;
        return ordinary(x[1]) & ordinary(x[3]);
    }
    INLINE void gradient(const Vector *x, Vector *g) {
        Vector shift = x[0] - x[2], distance = shift < Real(0) ? -shift : shift, d = distance / x[1], phi, expm1;
        decay(d, phi, expm1);
        Vector slope = -expm1 / x[3];
        g[0] = shift > Real(0) ? slope : (shift < Real(0) ? -slope : all(0));
        g[1] = ((x[1] - x[3]) + x[1] * (phi + d * expm1)) / (x[1] * x[3]);
        g[2] = -g[0];
        g[3] = -((x[1] - x[3]) + x[1] * phi) / (x[3] * x[3]);
    }
};

// Binomial(total_count, probs) or Binomial(total_count, logits) with equal counts: the count times the KL of two Bernoulli
// distributions.
template <class Trial>
struct Binomial {
    static const int count = 4;
    INLINE Integers value(const Vector *x, Vector &kl) {
        const Real whole = IS_DOUBLE ? 0x1p52 : 0x1p23;  // adding it rounds to an integer
        Vector parameters[2] = {x[1], x[3]}, n = x[0];
        Integers valid = Trial::value(parameters, kl);
        kl = n * kl;
        return valid & (n == x[2]) & (n >= Real(0)) & (n < whole) & ((n + whole) - whole == n);
    }
    INLINE void gradient(const Vector *x, Vector *g) {
        Vector parameters[2] = {x[1], x[3]}, slopes[2];
        Trial::value(parameters, g[0]);
        Trial::gradient(parameters, slopes);
        g[1] = x[0] * slopes[0];
        g[2] = all(0);
        g[3] = x[0] * slopes[1];
    }
};

// Cauchy(loc, scale): log(1 + ((scale1 - scale2)^2 + (loc1 - loc2)^2)/(4 scale1 scale2)).
struct Cauchy {
    static const int count = 4;
    INLINE Integers value(const Vector *x, Vector &kl) {
        Vector shift = x[0] - x[2], change = x[1] - x[3];
        Vector t = ((change / x[1]) * (change / x[3]) + (shift / x[1]) * (shift / x[3])) * Real(0.25);
        kl = residual(Real(1) + t, all(1), t).log + Real(0); // 0 for equal parameters, not -0
        return ordinary(x[1]) & ordinary(x[3]) & ordinary(Real(1) + t);
    }
    INLINE void gradient(const Vector *x, Vector *g) {
        Vector r = x[1] / x[3], change = (x[1] - x[3]) / x[3], a = (x[0] - x[2]) / x[3], sum = Real(1) + r;
        Vector inverse = Real(1) / (sum * sum + a * a) / x[3], scales = change * sum, square = a * a;
        g[0] = (a + a) * inverse;
        g[1] = (scales - square) / r * inverse;
        g[2] = -g[0];
        g[3] = -(scales + square) * inverse;
    }
};

struct Input {
    const Real *values;
    bool single;  // one number for all elements
};

template <int COUNT>
INLINE void load_inputs(const Input *inputs, size_t i, size_t n, Vector *x) {
    for (int k = 0; k < COUNT; k++) {
        if (inputs[k].single)
            x[k] = all(inputs[k].values[0]);
        else
            x[k] = n < LANES ? load_part(inputs[k].values + i, n, 1) : load(inputs[k].values + i);
    }
    if (n < LANES)  // the missing elements must not make the call invalid
        for (int k = 0; k < COUNT; k++)
            for (size_t j = n; j < LANES; j++) x[k][j] = x[k][0];
}

// The values of a form; false where an element requires the general implementation.
#define FORM(name, form)                                                                                              \
    static bool name##_value(const void *given, size_t n, void *out) {                                                \
        const Input *inputs = static_cast<const Input *>(given);                                                       \
        Integers valid = ~(Integers){};                                                                                \
        for (size_t i = 0; i < n; i += LANES) {                                                                        \
            size_t length = n - i < LANES ? n - i : LANES;                                                             \
            Vector x[form::count], kl;                                                                                 \
            load_inputs<form::count>(inputs, i, length, x);                                                            \
            valid &= form::value(x, kl);                                                                               \
            valid &= finite(kl);                                                                                       \
            std::memcpy(static_cast<Real *>(out) + i, &kl, length * sizeof(Real));                                     \
        }                                                                                                              \
        Signed every = -1;                                                                                             \
        for (size_t i = 0; i < LANES; i++) every &= valid[i];                                                          \
        return every;                                                                                                  \
    }                                                                                                                  \
    static void name##_gradient(const void *given, size_t n, const void *upstream, void *const *outs) {               \
        const Input *inputs = static_cast<const Input *>(given);                                                       \
        const Input factor = {static_cast<const Real *>(upstream), false};                                             \
        for (size_t i = 0; i < n; i += LANES) {                                                                        \
            size_t length = n - i < LANES ? n - i : LANES;                                                             \
            Vector x[form::count], g[form::count], f;                                                                  \
            load_inputs<form::count>(inputs, i, length, x);                                                            \
            load_inputs<1>(&factor, i, length, &f);                                                                    \
            form::gradient(x, g);                                                                                      \
            for (int k = 0; k < form::count; k++) {                                                                    \
                Vector scaled = g[k] * f;                                                                              \
                if (outs[k]) std::memcpy(static_cast<Real *>(outs[k]) + i, &scaled, length * sizeof(Real));           \
            }                                                                                                          \
        }                                                                                                              \
    }
FORM(normal, Normal)
FORM(normal_log_scale, NormalLogScale)
FORM(half_normal, HalfNormal)
FORM(exponential, Exponential)
FORM(poisson, Poisson)
FORM(bernoulli, Bernoulli)
FORM(geometric, Geometric)
FORM(laplace, Laplace)
FORM(bernoulli_logits, BernoulliLogits)
FORM(uniform, Uniform)
FORM(pareto, Pareto)
FORM(binomial, Binomial<Bernoulli>)
FORM(binomial_logits, Binomial<BernoulliLogits>)
FORM(cauchy, Cauchy)
FORM(laplace_normal, ToNormal<LaplaceMoments>)
FORM(gumbel_normal, ToNormal<GumbelMoments>)
FORM(uniform_normal, ToNormal<UniformMoments>)
FORM(exponential_normal, ToNormal<ExponentialMoments>)
#undef FORM

// Forms of gammas.h, which are computed in float64 for both types.
#if IS_DOUBLE
#define F64
#else
#define F64 f64::
#endif
#define WIDE_FORM(name, form)                                                                                         \
    INLINE void name##_inputs(const Input *inputs, size_t i, size_t length, F64 Vector *x) {                          \
        for (int k = 0; k < F64 form::count; k++)                                                                      \
            x[k] = inputs[k].single ? F64 all(inputs[k].values[0]) : F64 gather(inputs[k].values + i, 1, length);      \
    }                                                                                                                  \
    static bool name##_value(const void *given, size_t n, void *out) {                                                \
        const Input *inputs = static_cast<const Input *>(given);                                                       \
        F64 Integers valid = ~(F64 Integers){};                                                                        \
        for (size_t i = 0; i < n; i += F64 LANES) {                                                                    \
            size_t length = n - i < F64 LANES ? n - i : F64 LANES;                                                     \
            F64 Vector x[F64 form::count], kl;                                                                         \
            name##_inputs(inputs, i, length, x);                                                                       \
            valid &= F64 form::value(x, kl);                                                                           \
            F64 scatter(kl, static_cast<Real *>(out) + i, 1, length);                                                  \
        }                                                                                                              \
        return !F64 any(~valid);                                                                                       \
    }                                                                                                                  \
    static void name##_gradient(const void *given, size_t n, const void *upstream, void *const *outs) {               \
        const Input *inputs = static_cast<const Input *>(given);                                                       \
        for (size_t i = 0; i < n; i += F64 LANES) {                                                                    \
            size_t length = n - i < F64 LANES ? n - i : F64 LANES;                                                     \
            F64 Vector x[F64 form::count], g[F64 form::count];                                                         \
            F64 Vector factor = F64 gather(static_cast<const Real *>(upstream) + i, 1, length);                        \
            name##_inputs(inputs, i, length, x);                                                                       \
            F64 form::gradient(x, g);                                                                                  \
            F64 Integers used = factor != F64 all(0); /* 0 times the infinite derivative of an infinite KL is nan */   \
            for (int k = 0; k < F64 form::count; k++)                                                                  \
                if (outs[k])                                                                                           \
                    F64 scatter(used ? factor * g[k] : F64 all(0), static_cast<Real *>(outs[k]) + i, 1, length);       \
        }                                                                                                              \
    }
WIDE_FORM(gamma, Gamma)
WIDE_FORM(beta, Beta)
WIDE_FORM(gumbel, Gumbel)
WIDE_FORM(exponential_gamma, ExponentialGamma)
WIDE_FORM(gamma_exponential, GammaExponential)
WIDE_FORM(binet, Binet)
WIDE_FORM(binet_slope, BinetSlope)
WIDE_FORM(equal_mean, EqualMean)
#undef WIDE_FORM

static bool dirichlet(const void *a, size_t step_a, const void *b, size_t step_b, size_t rows, size_t n, double *out) {
    return F64 dirichlet_rows(static_cast<const Real *>(a), step_a, static_cast<const Real *>(b), step_b, rows, n, out);
}

static void dirichlet_gradient(const void *a, size_t step_a, const void *b, size_t step_b, size_t rows, size_t n,
                               const double *upstream, void *by_a, void *by_b) {
    F64 dirichlet_rows_slopes(static_cast<const Real *>(a), step_a, static_cast<const Real *>(b), step_b, rows, n,
                              upstream, static_cast<Real *>(by_a), static_cast<Real *>(by_b));
}

// KL of a pair of multivariate normal distributions of n components, given by lower factors or by covariance matrices, and
// upstream times the derivatives; false where the general implementation is required. `memory` has 5 n m + 2 n
// numbers, where m is n rounded up to a multiple of 8.
static bool multivariate(bool factors, const void *const *inputs, size_t n, double *memory, double *kl) {
    const Real *const *x = reinterpret_cast<const Real *const *>(inputs);
    return F64 multivariate_row(factors, x[0], x[1], x[2], x[3], n, memory, kl);
}

static bool multivariate_gradient(bool factors, const void *const *inputs, size_t n, double *memory, double upstream,
                                  void *const *outs) {
    const Real *const *x = reinterpret_cast<const Real *const *>(inputs);
    return F64 multivariate_slopes(factors, x[0], x[1], x[2], x[3], n, memory, upstream,
                                   reinterpret_cast<Real *const *>(outs));
}
#undef F64

// upstream times the derivatives of KL(p/P || q/Q) with respect to a row p and a row q of probabilities, with the masses
// P and Q: (log(p_i/q_i) + log(Q/P) - KL)/P and (1 - (p_i/P)/(q_i/Q))/Q. An output may be null. False where an entry
// requires the general implementation.
static bool prob_slopes(const void *p_row, const void *q_row, size_t n, double upstream, void *by_p, void *by_q) {
    const Real *p = static_cast<const Real *>(p_row), *q = static_cast<const Real *>(q_row);
    Sums sums = prob_sums(p, q, n);
    double x = -sums.excess / sums.mass, kl = sums.total / sums.mass - x * x * (0.5 - x / 3);
    Real shift = Real(std::log1p(x) - kl), change = Real(-x);
    Real factor_p = Real(upstream / sums.mass), factor_q = Real(upstream / (sums.mass - sums.excess));
    Integers valid = ~(Integers){};
    for (size_t i = 0; i < n; i += LANES) {
        size_t length = n - i < LANES ? n - i : LANES;
        Vector a = length < LANES ? load_part(p + i, length, 1) : load(p + i);
        Vector b = length < LANES ? load_part(q + i, length, 1) : load(q + i);
        valid &= (a >= SMALLEST) & (b >= SMALLEST);
        Vector of_p = factor_p * (residual(a, b, a - b).log + shift), of_q = factor_q * (((b - a) + a * change) / b);
        if (by_p) std::memcpy(static_cast<Real *>(by_p) + i, &of_p, length * sizeof(Real));
        if (by_q) std::memcpy(static_cast<Real *>(by_q) + i, &of_q, length * sizeof(Real));
    }
    Signed every = -1;
    for (size_t i = 0; i < LANES; i++) every &= valid[i];
    return every && std::fabs(kl) < HUGE_VAL;
}

static const Form FORMS[] = {
    {"normal", 4, normal_value, normal_gradient},
    {"normal_log_scale", 4, normal_log_scale_value, normal_log_scale_gradient},
    {"half_normal", 2, half_normal_value, half_normal_gradient},
    {"exponential", 2, exponential_value, exponential_gradient},
    {"poisson", 2, poisson_value, poisson_gradient},
    {"bernoulli", 2, bernoulli_value, bernoulli_gradient},
    {"geometric", 2, geometric_value, geometric_gradient},
    {"laplace", 4, laplace_value, laplace_gradient},
    {"gamma", 4, gamma_value, gamma_gradient},
    {"beta", 4, beta_value, beta_gradient},
    {"bernoulli_logits", 2, bernoulli_logits_value, bernoulli_logits_gradient},
    {"uniform", 4, uniform_value, uniform_gradient},
    {"pareto", 4, pareto_value, pareto_gradient},
    {"gumbel", 4, gumbel_value, gumbel_gradient},
    {"binomial", 4, binomial_value, binomial_gradient},
    {"binomial_logits", 4, binomial_logits_value, binomial_logits_gradient},
    {"cauchy", 4, cauchy_value, cauchy_gradient},
    {"exponential_gamma", 3, exponential_gamma_value, exponential_gamma_gradient},
    {"gamma_exponential", 3, gamma_exponential_value, gamma_exponential_gradient},
    {"laplace_normal", 4, laplace_normal_value, laplace_normal_gradient},
    {"gumbel_normal", 4, gumbel_normal_value, gumbel_normal_gradient},
    {"uniform_normal", 4, uniform_normal_value, uniform_normal_gradient},
    {"exponential_normal", 3, exponential_normal_value, exponential_normal_gradient},
    {"binet", 1, binet_value, binet_gradient},
    {"binet_slope", 1, binet_slope_value, binet_slope_gradient},
    {"equal_mean", 3, equal_mean_value, equal_mean_gradient},
};
