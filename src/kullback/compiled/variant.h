// The kernels of one instruction set for float64 and float32; VECTOR_BYTES and HAS_FMA are defined by the caller.

namespace f64 {
#define Real double
#define Signed int64_t
#define Unsigned uint64_t
#define MANTISSA 52
#define IS_DOUBLE 1
#include "rows.h"
#include "tokens.h"
#include "residuals.h"
#include "gammas.h"
#include "matrices.h"
#include "forms.h"
#undef Real
#undef Signed
#undef Unsigned
#undef MANTISSA
#undef IS_DOUBLE
}  // namespace f64

namespace f32 {
#define Real float
#define Signed int32_t
#define Unsigned uint32_t
#define MANTISSA 23
#define IS_DOUBLE 0
#include "rows.h"
#include "tokens.h"
#include "residuals.h"
#include "forms.h"
#undef Real
#undef Signed
#undef Unsigned
#undef MANTISSA
#undef IS_DOUBLE
}  // namespace f32
