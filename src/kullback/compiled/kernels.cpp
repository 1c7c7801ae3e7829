// The compiled kernels of KL(p || q) as a Python module in the limited API of Python 3.11.
//
// rows.h is compiled once for each instruction set, and the module calls the widest that the processor has. A compiler
// without the vector types of GCC and Clang cannot compile this file; the package then uses NumPy.

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if !defined(__GNUC__)
#error "The kernels need the vector types of GCC or Clang."
#endif

#define INLINE static inline __attribute__((always_inline))

// Probability rows: a kernel returns the sums of p phi(log(q/p)), of p and of p - q.
struct Sums {
    double total, mass, excess;
};

enum Type { FLOAT64, FLOAT32, BFLOAT16 };

// A closed form of KL, elementwise; see forms.h.
struct Form {
    const char *name;
    int count;
    bool (*value)(const void *inputs, size_t n, void *out);
    void (*gradient)(const void *inputs, size_t n, const void *upstream, void *const *outs);
};

static const int FORM_COUNT = 26, MOST_INPUTS = 4;

// The sums of token_sums; see tokens.h for the equations.
enum TokenSum {
    TOKEN_MASS,      // sum p
    TOKEN_PHI,       // sum p phi(d)
    TOKEN_EXCESS,    // sum q - p
    TOKEN_REVERSE,   // sum q phi(-d)
    TOKEN_ABSOLUTE,  // sum |q - p|
    TOKEN_LOGITS_P,  // sum p (z_p - max z_p)
    TOKEN_LOGITS_Q,  // sum q (z_q - max z_q)
    TOKEN_JS,        // sum m g(d)
    TOKEN_MIDDLE_P,  // sum p log(p/m)
    TOKEN_MIDDLE_Q,  // sum q log(q/m)
    TOKEN_SUMS,
};

// The coefficients of a gradient, for p and then for q:
//     p (constant + ratio d + middle log(m/p) + logits (z_p - max z_p)) + difference (q - p),
//     q (constant + ratio d + middle log(q/m) + logits (z_q - max z_q)) + difference (q - p).
// The result is multiplied by scale - curvature z^2, the derivative of the logits where they are scaled and capped.
enum TokenCoefficient {
    TOKEN_CONSTANT,
    TOKEN_RATIO,
    TOKEN_DIFFERENCE,
    TOKEN_MIDDLE,
    TOKEN_LOGITS,
    TOKEN_SCALE,
    TOKEN_CURVATURE,
    TOKEN_COEFFICIENTS,
};

// The kernels of one instruction set, for the types float64 and float32.
struct Kernels {
    const char *name;
    Sums (*prob_sums[2])(const void *p, const void *q, size_t n);
    // KL of a pair of rows of logits; nan where the general implementation is required.
    double (*kl_logits[2])(const void *p, const void *q, size_t n, double tolerance);
    void (*grad_p[2])(const void *p, const void *q, size_t n, double gradient, void *out);
    void (*grad_q[2])(const void *p, const void *q, size_t n, double gradient, void *out);
    // The derivatives of KL of a pair of rows of probabilities; false where the general implementation is required.
    bool (*prob_slopes[2])(const void *p, const void *q, size_t n, double upstream, void *by_p, void *by_q);
    const Form *forms[2];
    // KL of pairs of rows of concentrations; false where the general implementation is required. The step from a row to
    // the next is 0 for a single row.
    bool (*dirichlet[2])(const void *a, size_t step_a, const void *b, size_t step_b, size_t rows, size_t n, double *out);
    void (*dirichlet_gradient[2])(const void *a, size_t step_a, const void *b, size_t step_b, size_t rows, size_t n,
                                  const double *upstream, void *by_a, void *by_b);
    // KL of a pair of multivariate normal distributions, from loc and the matrix of p and of q; false where the general
    // implementation is required.
    bool (*multivariate[2])(bool factors, const void *const *inputs, size_t n, double *memory, double *kl);
    bool (*multivariate_gradient[2])(bool factors, const void *const *inputs, size_t n, double *memory, double upstream,
                                     void *const *outs);
    // Statistics of two next-token distributions; see tokens.h.
    void (*token_normalizer[2])(const void *row, const void *added, size_t n, double *top, double *log_sum,
                                double *index);
    void (*token_sums[2])(const void *p, const void *q, size_t n, const double *normalizers, bool middles,
                          bool difference, double *sums);
    void (*token_gradients[2])(void *p, void *q, size_t n, const double *normalizers, bool difference,
                               const double *of_p, const double *of_q);
};

#define TABLE(name)                                                                                                   \
    {name,                                                                                                             \
     {f64::prob_sums, f32::prob_sums},                                                                                 \
     {f64::kl_logits, f32::kl_logits},                                                                                 \
     {f64::grad_p, f32::grad_p},                                                                                       \
     {f64::grad_q, f32::grad_q},                                                                                       \
     {f64::prob_slopes, f32::prob_slopes},                                                                             \
     {f64::FORMS, f32::FORMS},                                                                                         \
     {f64::dirichlet, f32::dirichlet},                                                                                 \
     {f64::dirichlet_gradient, f32::dirichlet_gradient},                                                               \
     {f64::multivariate, f32::multivariate},                                                                           \
     {f64::multivariate_gradient, f32::multivariate_gradient},                                                        \
     {f64::token_normalizer, f32::token_normalizer},                                                                   \
     {f64::token_sums, f32::token_sums},                                                                               \
     {f64::token_gradients, f32::token_gradients}}

// The instruction sets: the baseline of the processor's family first.

#define VECTOR_BYTES 16
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define HAS_FMA 1
#else
#define HAS_FMA 0
#endif
namespace baseline {
#include "variant.h"
static const Kernels kernels = TABLE("baseline");
}  // namespace baseline
#undef VECTOR_BYTES
#undef HAS_FMA

#if defined(__x86_64__)
#define HAS_FMA 1

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define VECTOR_BYTES 32
namespace avx2 {
#include "variant.h"
static const Kernels kernels = TABLE("AVX2");
}  // namespace avx2
#undef VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512vl")
#endif
#define VECTOR_BYTES 64
namespace avx512 {
#include "variant.h"
static const Kernels kernels = TABLE("AVX-512");
}  // namespace avx512
#undef VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef HAS_FMA
#endif

static const Kernels *kernels = &baseline::kernels;

// The instruction sets that the processor has, from the narrowest to the widest.
static int available(const Kernels *found[3]) {
    int count = 0;
    found[count++] = &baseline::kernels;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        found[count++] = &avx2::kernels;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512vl"))
            found[count++] = &avx512::kernels;
    }
#endif
    return count;
}

// KL(p/P || q/Q) = total/P - phi(log(Q/P)) from the sums of a row; nan where a mass deviates from 1 by more than the
// tolerance, or where the difference would cancel.
static double kl_of_sums(Sums sums, double tolerance) {
    if (!(std::fabs(sums.mass - 1) <= tolerance && std::fabs(sums.mass - sums.excess - 1) <= tolerance)) return NAN;
    double x = -sums.excess / sums.mass;
    double phi_masses = x * x * (1.0 / 2 - x * (1.0 / 3 - x * (1.0 / 4 - x * (1.0 / 5 - x / 6))));
    double kl = sums.total / sums.mass;
    return kl >= 4 * phi_masses ? kl - phi_masses : NAN;
}

// Views of arrays.

struct View {
    Py_buffer buffer;
    bool held = false;
    ~View() {
        if (held) PyBuffer_Release(&buffer);
    }
    Py_ssize_t rows() const { return buffer.ndim == 2 ? buffer.shape[0] : 1; }
    Py_ssize_t columns() const { return buffer.shape[buffer.ndim - 1]; }
    const char *row(Py_ssize_t i) const {
        return static_cast<const char *>(buffer.buf) + (i % rows()) * columns() * buffer.itemsize;
    }
};

// Fill the view of a C-contiguous array with one or two axes; -1 and a Python error otherwise.
static int view_of(PyObject *object, View &view, Type *type, bool writable) {
    int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, &view.buffer, flags) < 0) return -1;
    view.held = true;
    const char *format = view.buffer.format;
    if (view.buffer.ndim < 1 || view.buffer.ndim > 2) {
        PyErr_Format(PyExc_ValueError, "expected an array with 1 or 2 axes, got %d", view.buffer.ndim);
        return -1;
    }
    if (!std::strcmp(format, "d"))
        *type = FLOAT64;
    else if (!std::strcmp(format, "f"))
        *type = FLOAT32;
    else if (!std::strcmp(format, "H"))
        *type = BFLOAT16;
    else {
        PyErr_Format(PyExc_TypeError, "expected float64, float32 or the bits of bfloat16, got the format %s", format);
        return -1;
    }
    return 0;
}

// Two arrays of the same type and number of columns.
static int pair_of(PyObject *const *objects, View &p, View &q, Type *type) {
    Type other;
    if (view_of(objects[0], p, type, false) < 0 || view_of(objects[1], q, &other, false) < 0) return -1;
    if (*type != other || p.columns() != q.columns()) {
        PyErr_SetString(PyExc_ValueError, "expected two arrays of the same type and number of columns");
        return -1;
    }
    return 0;
}

// A float64 array of n numbers.
static int numbers_of(PyObject *object, View &view, Py_ssize_t n, bool writable) {
    Type type;
    if (view_of(object, view, &type, writable) < 0) return -1;
    if (type != FLOAT64 || view.buffer.ndim != 1 || view.columns() != n) {
        PyErr_Format(PyExc_ValueError, "expected %zd numbers in float64", n);
        return -1;
    }
    return 0;
}

// Whether each side has a single row, or as many as the result.
static bool rows_match(const View &p, const View &q, Py_ssize_t rows) {
    return (p.rows() == 1 || p.rows() == rows) && (q.rows() == 1 || q.rows() == rows);
}

static bool expect(Py_ssize_t got, Py_ssize_t count) {
    if (got != count) PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", count, got);
    return got == count;
}

// The Python functions.

static PyObject *prob_sums(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    View p, q;
    Type type;
    if (!expect(count, 2) || pair_of(arguments, p, q, &type) < 0) return nullptr;
    if (type == BFLOAT16 || p.rows() != 1 || q.rows() != 1) {
        PyErr_SetString(PyExc_ValueError, "expected one row of float64 or float32");
        return nullptr;
    }
    Sums sums;
    Py_BEGIN_ALLOW_THREADS
    sums = kernels->prob_sums[type](p.buffer.buf, q.buffer.buf, p.columns());
    Py_END_ALLOW_THREADS
    return Py_BuildValue("ddd", sums.total, sums.mass, sums.excess);
}

static PyObject *kl_probs_row(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    View p, q;
    Type type;
    if (!expect(count, 3) || pair_of(arguments, p, q, &type) < 0) return nullptr;
    double tolerance = PyFloat_AsDouble(arguments[2]);
    if (PyErr_Occurred()) return nullptr;
    if (type == BFLOAT16 || p.rows() != 1 || q.rows() != 1) {
        PyErr_SetString(PyExc_ValueError, "expected one row of float64 or float32");
        return nullptr;
    }
    Py_ssize_t n = p.columns();
    double kl;
    if (n < 1000) {  // releasing the lock costs more than the computation
        kl = kl_of_sums(kernels->prob_sums[type](p.buffer.buf, q.buffer.buf, n), tolerance);
    } else {
        Py_BEGIN_ALLOW_THREADS
        kl = kl_of_sums(kernels->prob_sums[type](p.buffer.buf, q.buffer.buf, n), tolerance);
        Py_END_ALLOW_THREADS
    }
    return PyFloat_FromDouble(kl);
}

static PyObject *kl_probs_rows(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    View p, q, out;
    Type type;
    if (!expect(count, 4) || pair_of(arguments, p, q, &type) < 0) return nullptr;
    double tolerance = PyFloat_AsDouble(arguments[2]);
    Py_ssize_t rows = p.rows() > q.rows() ? p.rows() : q.rows();
    if (PyErr_Occurred() || numbers_of(arguments[3], out, rows, true) < 0) return nullptr;
    if (type == BFLOAT16 || !rows_match(p, q, rows)) {
        PyErr_SetString(PyExc_ValueError, "expected rows of float64 or float32, as many as the result or a single row");
        return nullptr;
    }
    double *kl = static_cast<double *>(out.buffer.buf);
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < rows; i++)
        kl[i] = kl_of_sums(kernels->prob_sums[type](p.row(i), q.row(i), p.columns()), tolerance);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

// The float32 values of a row of bfloat16 bits.
static void widen(const char *half, float *row, Py_ssize_t n) {
    for (Py_ssize_t i = 0; i < n; i++) {
        uint16_t bits;
        std::memcpy(&bits, half + 2 * i, 2);
        uint32_t wide = static_cast<uint32_t>(bits) << 16;
        std::memcpy(row + i, &wide, 4);
    }
}

static PyObject *kl_logits_rows(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    View p, q, out;
    Type type;
    if (!expect(count, 4) || pair_of(arguments, p, q, &type) < 0) return nullptr;
    double tolerance = PyFloat_AsDouble(arguments[2]);
    Py_ssize_t rows = p.rows() > q.rows() ? p.rows() : q.rows(), n = p.columns();
    if (PyErr_Occurred() || numbers_of(arguments[3], out, rows, true) < 0) return nullptr;
    if (n < 1 || !rows_match(p, q, rows)) {
        PyErr_SetString(PyExc_ValueError, "expected rows of at least one logit, as many as the result or a single row");
        return nullptr;
    }
    double *kl = static_cast<double *>(out.buffer.buf);
    if (type != BFLOAT16) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < rows; i++) kl[i] = kernels->kl_logits[type](p.row(i), q.row(i), n, tolerance);
        Py_END_ALLOW_THREADS
        Py_RETURN_NONE;
    }
    float *wide = static_cast<float *>(std::malloc(2 * n * sizeof(float)));
    if (!wide) return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < rows; i++) {
        if (i == 0 || p.rows() > 1) widen(p.row(i), wide, n);
        if (i == 0 || q.rows() > 1) widen(q.row(i), wide + n, n);
        kl[i] = kernels->kl_logits[FLOAT32](wide, wide + n, n, tolerance);
    }
    Py_END_ALLOW_THREADS
    std::free(wide);
    Py_RETURN_NONE;
}

// The vector-Jacobian product of each pair of rows, by the gradient with respect to the logits of p or of q.
static PyObject *gradient_rows(PyObject *const *arguments, Py_ssize_t count, bool of_p) {
    View p, q, gradient, out;
    Type type, out_type;
    if (!expect(count, 4) || pair_of(arguments, p, q, &type) < 0) return nullptr;
    Py_ssize_t rows = p.rows(), n = p.columns();
    if (numbers_of(arguments[2], gradient, rows, false) < 0 || view_of(arguments[3], out, &out_type, true) < 0)
        return nullptr;
    if (type == BFLOAT16 || out_type != type || q.rows() != rows || out.rows() != rows || out.columns() != n || n < 1) {
        PyErr_SetString(PyExc_ValueError, "expected arrays of the same shape in float64 or float32");
        return nullptr;
    }
    auto function = (of_p ? kernels->grad_p : kernels->grad_q)[type];
    const double *factors = static_cast<const double *>(gradient.buffer.buf);
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < rows; i++)
        function(p.row(i), q.row(i), n, factors[i], const_cast<char *>(out.row(i)));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *kl_logits_grad_p_rows(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    return gradient_rows(arguments, count, true);
}

static PyObject *kl_logits_grad_q_rows(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    return gradient_rows(arguments, count, false);
}

static PyObject *kl_probs_gradient_rows(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    View p, q, gradient, outs[2];
    Type type;
    if (!expect(count, 5) || pair_of(arguments, p, q, &type) < 0) return nullptr;
    Py_ssize_t rows = p.rows() > q.rows() ? p.rows() : q.rows();
    if (numbers_of(arguments[2], gradient, rows, false) < 0) return nullptr;
    if (type == BFLOAT16 || !rows_match(p, q, rows)) {
        PyErr_SetString(PyExc_ValueError, "expected rows of float64 or float32, as many as the result or a single row");
        return nullptr;
    }
    for (int k = 0; k < 2; k++) {
        Type out_type;
        if (arguments[3 + k] == Py_None) continue;
        if (view_of(arguments[3 + k], outs[k], &out_type, true) < 0) return nullptr;
        if (out_type != type || outs[k].rows() != rows || outs[k].columns() != p.columns()) {
            PyErr_SetString(PyExc_ValueError, "expected results of the type and the shape of the rows");
            return nullptr;
        }
    }
    const double *factors = static_cast<const double *>(gradient.buffer.buf);
    bool valid = true;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; valid && i < rows; i++)
        valid = kernels->prob_slopes[type](p.row(i), q.row(i), p.columns(), factors[i],
                                           outs[0].held ? const_cast<char *>(outs[0].row(i)) : nullptr,
                                           outs[1].held ? const_cast<char *>(outs[1].row(i)) : nullptr);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(valid);
}

// The inputs of a form, as arrays of one type: each has as many elements as the result, or one.
struct FormInputs {
    View views[MOST_INPUTS];
    struct {
        const void *values;
        bool single;
    } inputs[MOST_INPUTS];
    const Form *form;
    Type type;
    Py_ssize_t n;
};

static int elements_of(PyObject *object, View &view, Type *type, bool writable, Py_ssize_t *n) {
    int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, &view.buffer, flags) < 0) return -1;
    view.held = true;
    bool wide = !std::strcmp(view.buffer.format, "d");
    if (!wide && std::strcmp(view.buffer.format, "f")) {
        PyErr_Format(PyExc_TypeError, "expected float64 or float32, got the format %s", view.buffer.format);
        return -1;
    }
    *type = wide ? FLOAT64 : FLOAT32;
    *n = view.buffer.len / view.buffer.itemsize;
    return 0;
}

static int form_inputs(PyObject *const *arguments, Py_ssize_t count, Py_ssize_t more, FormInputs &given) {
    long index = count ? PyLong_AsLong(arguments[0]) : -1;
    if (PyErr_Occurred()) return -1;
    if (index < 0 || index >= FORM_COUNT) {
        PyErr_SetString(PyExc_ValueError, "expected the index of a form");
        return -1;
    }
    given.form = &kernels->forms[FLOAT64][index];
    if (!expect(count, 1 + given.form->count + more)) return -1;
    for (int k = 0; k < given.form->count; k++) {
        Type type;
        Py_ssize_t n;
        if (elements_of(arguments[1 + k], given.views[k], &type, false, &n) < 0) return -1;
        given.inputs[k] = {given.views[k].buffer.buf, n == 1};
        if (k == 0) given.type = type, given.n = n;
        if (type != given.type || (n != 1 && given.n != 1 && n != given.n)) {
            PyErr_SetString(PyExc_ValueError, "expected arrays of one type and one size, or of one element");
            return -1;
        }
        if (n != 1) given.n = n;
    }
    given.form = &kernels->forms[given.type][index];
    return 0;
}

static int result_of(PyObject *object, View &view, const FormInputs &given, bool writable) {
    Type type;
    Py_ssize_t n;
    if (elements_of(object, view, &type, writable, &n) < 0) return -1;
    if (type == given.type && n == given.n) return 0;
    PyErr_SetString(PyExc_ValueError, "expected a result of the type and the size of the inputs");
    return -1;
}

static PyObject *form_value(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    FormInputs given;
    View out;
    if (form_inputs(arguments, count, 1, given) < 0 || result_of(arguments[count - 1], out, given, true) < 0)
        return nullptr;
    bool valid;
    if (given.n < 1000) {
        valid = given.form->value(given.inputs, given.n, out.buffer.buf);
    } else {
        Py_BEGIN_ALLOW_THREADS
        valid = given.form->value(given.inputs, given.n, out.buffer.buf);
        Py_END_ALLOW_THREADS
    }
    return PyBool_FromLong(valid);
}

static PyObject *form_gradient(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    FormInputs given;
    View upstream, outs[MOST_INPUTS];
    long index = count ? PyLong_AsLong(arguments[0]) : -1;
    if (PyErr_Occurred()) return nullptr;
    int inputs = index >= 0 && index < FORM_COUNT ? kernels->forms[FLOAT64][index].count : 0;
    if (form_inputs(arguments, count, 1 + inputs, given) < 0) return nullptr;
    if (result_of(arguments[1 + inputs], upstream, given, false) < 0) return nullptr;
    void *results[MOST_INPUTS] = {};
    for (int k = 0; k < inputs; k++) {
        PyObject *out = arguments[2 + inputs + k];
        if (out == Py_None) continue;
        if (result_of(out, outs[k], given, true) < 0) return nullptr;
        results[k] = outs[k].buffer.buf;
    }
    Py_BEGIN_ALLOW_THREADS
    given.form->gradient(given.inputs, given.n, upstream.buffer.buf, results);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

// The rows of two arrays of concentrations, and the number of rows of the result.
static int concentrations_of(PyObject *const *arguments, View &a, View &b, Type *type, Py_ssize_t *rows) {
    if (pair_of(arguments, a, b, type) < 0) return -1;
    *rows = a.rows() == 1 ? b.rows() : a.rows();
    if (*type != BFLOAT16 && rows_match(a, b, *rows) && a.columns() > 0) return 0;
    PyErr_SetString(PyExc_ValueError, "expected rows of float64 or float32, as many as the result or a single row");
    return -1;
}

static size_t step_of(const View &view) { return view.rows() == 1 ? 0 : view.columns(); }

static PyObject *dirichlet_rows(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    View a, b, out;
    Type type;
    Py_ssize_t rows;
    if (!expect(count, 3) || concentrations_of(arguments, a, b, &type, &rows) < 0 ||
        numbers_of(arguments[2], out, rows, true) < 0)
        return nullptr;
    double *kl = static_cast<double *>(out.buffer.buf);
    bool valid;
    Py_BEGIN_ALLOW_THREADS
    valid = kernels->dirichlet[type](a.buffer.buf, step_of(a), b.buffer.buf, step_of(b), rows, a.columns(), kl);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(valid);
}

static PyObject *dirichlet_gradient_rows(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    View a, b, upstream, outs[2];
    Type type;
    Py_ssize_t rows;
    if (!expect(count, 5) || concentrations_of(arguments, a, b, &type, &rows) < 0 ||
        numbers_of(arguments[2], upstream, rows, false) < 0)
        return nullptr;
    for (int k = 0; k < 2; k++) {
        Type out_type;
        if (arguments[3 + k] == Py_None) continue;
        if (view_of(arguments[3 + k], outs[k], &out_type, true) < 0) return nullptr;
        if (out_type != type || outs[k].rows() != rows || outs[k].columns() != a.columns()) {
            PyErr_SetString(PyExc_ValueError, "expected results of the type and the shape of the rows");
            return nullptr;
        }
    }
    const double *factors = static_cast<const double *>(upstream.buffer.buf);
    Py_BEGIN_ALLOW_THREADS
    kernels->dirichlet_gradient[type](a.buffer.buf, step_of(a), b.buffer.buf, step_of(b), rows, a.columns(), factors,
                                      outs[0].held ? outs[0].buffer.buf : nullptr,
                                      outs[1].held ? outs[1].buffer.buf : nullptr);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

// A float64 array with one row of `columns` numbers for each row of logits.
static int table_of(PyObject *object, View &view, Py_ssize_t rows, Py_ssize_t columns, bool writable) {
    Type type;
    if (view_of(object, view, &type, writable) < 0) return -1;
    if (type == FLOAT64 && view.buffer.ndim == 2 && view.rows() == rows && view.columns() == columns) return 0;
    PyErr_Format(PyExc_ValueError, "expected float64 of shape (%zd, %zd)", rows, columns);
    return -1;
}

// Two arrays of logits of the same shape, in float64 or float32.
static int logits_of(PyObject *const *objects, View &p, View &q, Type *type, bool writable) {
    Type other;
    if (view_of(objects[0], p, type, writable) < 0 || view_of(objects[1], q, &other, writable) < 0) return -1;
    if (*type != BFLOAT16 && *type == other && p.rows() == q.rows() && p.columns() == q.columns()) return 0;
    PyErr_SetString(PyExc_ValueError, "expected rows of logits of the same shape in float64 or float32");
    return -1;
}

static PyObject *token_normalizers(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    View z, added, out;
    Type type, other;
    if (!expect(count, 3) || view_of(arguments[0], z, &type, false) < 0 ||
        table_of(arguments[2], out, z.rows(), 3, true) < 0)
        return nullptr;
    other = type;
    if (arguments[1] != Py_None && view_of(arguments[1], added, &other, false) < 0) return nullptr;
    if (type == BFLOAT16 || other != type ||
        (added.held && (added.rows() != z.rows() || added.columns() != z.columns()))) {
        PyErr_SetString(PyExc_ValueError, "expected rows of logits of the same shape in float64 or float32");
        return nullptr;
    }
    double *to = static_cast<double *>(out.buffer.buf);
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < z.rows(); i++)
        kernels->token_normalizer[type](z.row(i), added.held ? added.row(i) : nullptr, z.columns(), to + 3 * i,
                                        to + 3 * i + 1, to + 3 * i + 2);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *token_sums(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    View p, q, normalizers, out;
    Type type;
    if (!expect(count, 6) || logits_of(arguments, p, q, &type, false) < 0 ||
        table_of(arguments[2], normalizers, p.rows(), 4, false) < 0 ||
        table_of(arguments[5], out, p.rows(), TOKEN_SUMS, true) < 0)
        return nullptr;
    int middles = PyObject_IsTrue(arguments[3]), difference = PyObject_IsTrue(arguments[4]);
    if (middles < 0 || difference < 0) return nullptr;
    const double *from = static_cast<const double *>(normalizers.buffer.buf);
    double *to = static_cast<double *>(out.buffer.buf);
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < p.rows(); i++)
        kernels->token_sums[type](p.row(i), q.row(i), p.columns(), from + 4 * i, middles, difference,
                                  to + TOKEN_SUMS * i);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *token_gradients(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    View p, q, normalizers, coefficients[2];
    Type type;
    if (!expect(count, 6) || logits_of(arguments, p, q, &type, true) < 0 ||
        table_of(arguments[2], normalizers, p.rows(), 4, false) < 0)
        return nullptr;
    int difference = PyObject_IsTrue(arguments[3]);
    if (difference < 0) return nullptr;
    const double *of[2] = {nullptr, nullptr};
    for (int side = 0; side < 2; side++) {
        if (arguments[4 + side] == Py_None) continue;
        if (table_of(arguments[4 + side], coefficients[side], p.rows(), TOKEN_COEFFICIENTS, false) < 0) return nullptr;
        of[side] = static_cast<const double *>(coefficients[side].buffer.buf);
    }
    const double *from = static_cast<const double *>(normalizers.buffer.buf);
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < p.rows(); i++)
        kernels->token_gradients[type](const_cast<char *>(p.row(i)), const_cast<char *>(q.row(i)), p.columns(),
                                       from + 4 * i, difference, of[0] ? of[0] + TOKEN_COEFFICIENTS * i : nullptr,
                                       of[1] ? of[1] + TOKEN_COEFFICIENTS * i : nullptr);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

// The parameters of pairs of multivariate normal distributions: loc and the matrix of p and of q, each for every pair or
// for all pairs.
struct MultivariateInputs {
    View views[4];
    Type type;
    Py_ssize_t n, counts[4];
    int factors;
};

// Fill the view of an array of `pairs` (or of any number of) entries of `size` numbers.
static int entries_of(PyObject *object, View &view, Type type, Py_ssize_t size, bool writable, Py_ssize_t *pairs) {
    Type found;
    Py_ssize_t elements;
    if (elements_of(object, view, &found, writable, &elements) < 0) return -1;
    if (found == type && elements % size == 0 && (*pairs < 0 || elements == *pairs * size)) {
        *pairs = elements / size;
        return 0;
    }
    PyErr_SetString(PyExc_ValueError, "expected arrays of one type with vectors or square matrices of one size");
    return -1;
}

static int multivariate_inputs(PyObject *const *arguments, Py_ssize_t pairs, MultivariateInputs &given) {
    given.factors = PyObject_IsTrue(arguments[0]);
    Py_ssize_t elements;
    if (given.factors < 0 || elements_of(arguments[1], given.views[0], &given.type, false, &elements) < 0) return -1;
    const Py_buffer &loc = given.views[0].buffer;
    given.n = loc.ndim ? loc.shape[loc.ndim - 1] : 0;
    if (given.n < 1 || given.n > 4096) {
        PyErr_SetString(PyExc_ValueError, "expected between 1 and 4096 components");
        return -1;
    }
    given.counts[0] = elements / given.n;
    for (int k = 1; k < 4; k++) {
        given.counts[k] = -1;
        Py_ssize_t size = k % 2 ? given.n * given.n : given.n;
        if (entries_of(arguments[1 + k], given.views[k], given.type, size, false, &given.counts[k]) < 0) return -1;
    }
    for (int k = 0; k < 4; k++) {
        if (given.counts[k] == 1 || given.counts[k] == pairs) continue;
        PyErr_SetString(PyExc_ValueError, "expected as many parameters as results, or one");
        return -1;
    }
    return 0;
}

// The addresses of the parameters of a pair.
static void multivariate_pair(const MultivariateInputs &given, Py_ssize_t i, const void **inputs) {
    for (int k = 0; k < 4; k++) {
        const Py_buffer &buffer = given.views[k].buffer;
        Py_ssize_t size = (k % 2 ? given.n * given.n : given.n) * buffer.itemsize;
        inputs[k] = static_cast<const char *>(buffer.buf) + (given.counts[k] == 1 ? 0 : i * size);
    }
}

static double *multivariate_memory(Py_ssize_t n) {
    double *memory = static_cast<double *>(std::malloc((5 * n * ((n + 7) / 8 * 8) + 2 * n) * sizeof(double)));
    if (!memory) PyErr_NoMemory();
    return memory;
}

static PyObject *multivariate_rows(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    MultivariateInputs given;
    View out;
    Py_ssize_t pairs = -1;
    if (!expect(count, 6) || entries_of(arguments[5], out, FLOAT64, 1, true, &pairs) < 0 ||
        multivariate_inputs(arguments, pairs, given) < 0)
        return nullptr;
    double *memory = multivariate_memory(given.n), *kl = static_cast<double *>(out.buffer.buf);
    if (!memory) return nullptr;
    bool valid = true;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; valid && i < pairs; i++) {
        const void *inputs[4];
        multivariate_pair(given, i, inputs);
        valid = kernels->multivariate[given.type](given.factors, inputs, given.n, memory, kl + i);
    }
    Py_END_ALLOW_THREADS
    std::free(memory);
    return PyBool_FromLong(valid);
}

static PyObject *multivariate_gradient_rows(PyObject *, PyObject *const *arguments, Py_ssize_t count) {
    MultivariateInputs given;
    View upstream, outs[4];
    Py_ssize_t pairs = -1;
    if (!expect(count, 10) || entries_of(arguments[5], upstream, FLOAT64, 1, false, &pairs) < 0 ||
        multivariate_inputs(arguments, pairs, given) < 0)
        return nullptr;
    Py_ssize_t sizes[4];
    for (int k = 0; k < 4; k++) {
        sizes[k] = k % 2 ? given.n * given.n : given.n;
        PyObject *out = arguments[6 + k];
        if (out != Py_None && entries_of(out, outs[k], given.type, sizes[k], true, &pairs) < 0) return nullptr;
    }
    double *memory = multivariate_memory(given.n);
    if (!memory) return nullptr;
    const double *factors = static_cast<const double *>(upstream.buffer.buf);
    bool valid = true;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; valid && i < pairs; i++) {
        const void *inputs[4];
        void *results[4];
        multivariate_pair(given, i, inputs);
        for (int k = 0; k < 4; k++)
            results[k] = !outs[k].held ? nullptr
                                       : static_cast<char *>(outs[k].buffer.buf) + i * sizes[k] * outs[k].buffer.itemsize;
        valid = kernels->multivariate_gradient[given.type](given.factors, inputs, given.n, memory, factors[i], results);
    }
    Py_END_ALLOW_THREADS
    std::free(memory);
    return PyBool_FromLong(valid);
}

static PyObject *form_names(PyObject *, PyObject *) {
    PyObject *names = PyTuple_New(FORM_COUNT);
    for (int i = 0; names && i < FORM_COUNT; i++)
        PyTuple_SetItem(names, i, PyUnicode_FromString(kernels->forms[FLOAT64][i].name));
    return names;
}

static PyObject *instruction_sets(PyObject *, PyObject *) {
    const Kernels *found[3];
    int count = available(found);
    PyObject *names = PyTuple_New(count);
    for (int i = 0; names && i < count; i++) PyTuple_SetItem(names, i, PyUnicode_FromString(found[i]->name));
    return names;
}

static PyObject *use_instruction_set(PyObject *, PyObject *name) {
    const char *wanted = PyUnicode_AsUTF8AndSize(name, nullptr);
    if (!wanted) return nullptr;
    const Kernels *found[3];
    int count = available(found);
    for (int i = 0; i < count; i++) {
        if (std::strcmp(found[i]->name, wanted)) continue;
        kernels = found[i];
        Py_RETURN_NONE;
    }
    return PyErr_Format(PyExc_ValueError, "the processor does not have the instruction set %s", wanted);
}

#define FAST(name, text) {#name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(name)), METH_FASTCALL, text}

static PyMethodDef functions[] = {
    FAST(prob_sums,
         "prob_sums(p, q)\n--\n\nThe sums over a row of p phi(log(q/p)), p and p - q; the first is nan where an entry is "
         "negative or nan."),
    FAST(kl_probs_row,
         "kl_probs_row(p, q, tolerance)\n--\n\nKL(p || q) of two rows of probabilities; nan for invalid input and where "
         "the masses would cancel."),
    FAST(kl_probs_rows,
         "kl_probs_rows(p, q, tolerance, out)\n--\n\nKL(p || q) of each pair of rows, where p or q may be a single row."),
    FAST(kl_logits_rows,
         "kl_logits_rows(p, q, tolerance, out)\n--\n\nKL(p || q) of each pair of rows of logits, where p or q may be a "
         "single row; nan where the general implementation is required."),
    FAST(kl_logits_grad_p_rows,
         "kl_logits_grad_p_rows(p, q, gradient, out)\n--\n\ngradient * p (log(p/q) - KL) of each pair of rows; nan where "
         "the general implementation is required."),
    FAST(kl_logits_grad_q_rows,
         "kl_logits_grad_q_rows(p, q, gradient, out)\n--\n\ngradient * (q - p) of each pair of rows; nan where the general "
         "implementation is required."),
    FAST(kl_probs_gradient_rows,
         "kl_probs_gradient_rows(p, q, gradient, by_p, by_q)\n--\n\nWrite gradient times the derivatives of each pair of "
         "rows of probabilities, unless a result is None; False where the general implementation is required."),
    FAST(form_value,
         "form_value(index, *inputs, out)\n--\n\nWrite KL(p || q) by the closed form of this index; False where the general "
         "implementation is required."),
    FAST(form_gradient,
         "form_gradient(index, *inputs, upstream, *outs)\n--\n\nWrite upstream * dKL/dinput for each input whose result "
         "is not None."),
    FAST(dirichlet_rows,
         "dirichlet_rows(a, b, out)\n--\n\nWrite KL of each pair of rows of concentrations; False where the general "
         "implementation is required."),
    FAST(dirichlet_gradient_rows,
         "dirichlet_gradient_rows(a, b, upstream, by_a, by_b)\n--\n\nWrite upstream times the derivatives with respect to "
         "the concentrations, unless a result is None."),
    FAST(multivariate_rows,
         "multivariate_rows(factors, loc1, matrix1, loc2, matrix2, out)\n--\n\nWrite KL of pairs of multivariate normal "
         "distributions, from lower factors or covariance matrices; False where the general implementation is required."),
    FAST(multivariate_gradient_rows,
         "multivariate_gradient_rows(factors, loc1, matrix1, loc2, matrix2, upstream, *outs)\n--\n\nWrite upstream times "
         "the derivatives with respect to the parameters whose result is not None; False where the general implementation "
         "is required."),
    FAST(token_normalizers,
         "token_normalizers(z, added, out)\n--\n\nWrite max z, log sum exp(z - max z) and the index of max z of each row, "
         "where z is the sum of both arrays unless the second is None."),
    FAST(token_sums,
         "token_sums(p, q, normalizers, middles, difference, out)\n--\n\nWrite the sums of tokens.h of each pair of rows of logits, "
         "whose normalizers are (max z_p, log Z_p, max z_q, log Z_q)."),
    FAST(token_gradients,
         "token_gradients(p, q, normalizers, difference, of_p, of_q)\n--\n\nOverwrite the logits with their gradients, from the "
         "coefficients of tokens.h, unless they are None."),
    {"form_names", form_names, METH_NOARGS, "form_names()\n--\n\nThe names of the closed forms, in their order."},
    {"instruction_sets", instruction_sets, METH_NOARGS,
     "instruction_sets()\n--\n\nThe instruction sets that the processor has; the last is used."},
    {"use_instruction_set", use_instruction_set, METH_O,
     "use_instruction_set(name)\n--\n\nUse the named instruction set, for tests and measurements."},
    {nullptr, nullptr, 0, nullptr},
};

static int on_import(PyObject *) {
    const Kernels *found[3];
    kernels = found[available(found) - 1];
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void *>(on_import)}, {0, nullptr}};

static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernels", "Compiled kernels of KL(p || q).", 0, functions,
                                 slots, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&definition); }
