// Functions of vectors without cancellation, for one type and one instruction set; rows.h is included before this file,
// and defines the vectors and the parts of p phi(log(q/p)).

// phi(log(u / v)) = u/v - 1 - log(u/v), and log(u/v), for u and v of ordinary size; `difference` is u - v.
struct Residual {
    Vector phi, log;
};

// log(u/v), and phi as head/v + tail.
INLINE Vector residual_parts(Vector u, Vector v, Vector difference, Vector &head, Vector &tail) {
    Vector k, f;
    scale_near(v, u, k, f);
    Vector gap = v - f;
    Vector s = ((gap == Real(0)) ? -difference : f - u) / (f + u), w = s * s, rest = s * (w * horner(w, ATANH));
    // log(v/u) = k log(2) + 2 s + rest. For k = 0 the gap is 0 and phi is -s difference / v + rest, where `rest` is
    // smaller by a factor of about s, so that the terms do not cancel.
    head = s * (gap - difference) - gap;
    tail = rest + k * Real(LOG2);
    return -(k * Real(LOG2) + (s + s + rest));
}

INLINE Residual residual(Vector u, Vector v, Vector difference) {
    Vector head, tail, log = residual_parts(u, v, difference, head, tail);
    return {head / v + tail, log};
}

// The residual where 1/v is computed already.
INLINE Residual residual_by(Vector u, Vector v, Vector difference, Vector inverse_v) {
    Vector head, tail, log = residual_parts(u, v, difference, head, tail);
    return {head * inverse_v + tail, log};
}

// log(u/v) of positive numbers of ordinary size.
INLINE Vector log_quotient(Vector u, Vector v) { return residual(u, v, u - v).log; }

// Coefficients of g(w) in 2 atanh(s) = 2s + s w g(w) for 0 <= w <= (0.64/1.36)^2.
static const Real WIDE_ATANH[] = {
    Real(0.6666666666666667),  Real(0.39999999999995794),  Real(0.28571428572488355), Real(0.2222222211754375),
    Real(0.18181823536930808), Real(0.1538445296391628),   Real(0.13336480214480168), Real(0.11724112319153504),
    Real(0.10881473827275012), Real(0.07419982512897697),  Real(0.16914361996583852), Real(-0.11780369362017949),
    Real(0.32019697979333783)};

// x - log1p(x) for -0.64 < x < 1.
INLINE Vector log1p_series(Vector x) {
    Vector s = x / (Real(2) + x);
    return s * (x - s * (s * horner(s * s, WIDE_ATANH)));
}

INLINE Integers ordinary(Vector x) { return (x >= SMALLEST) & (x <= Real(1) / SMALLEST); }
INLINE Integers finite(Vector x) { return (x < Real(HUGE_VAL)) & (x > -Real(HUGE_VAL)); }
