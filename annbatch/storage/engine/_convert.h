/* Moving values between dtypes, for kernels that learn the dtypes at run time.
 *
 * Everything here is a plain loop over pointers: no Python, no allocation, no policy. A dtype is a small code (below, the
 * same order as storage/dtypes.py); the loops for each pair of codes come from one macro, so that no pair can be
 * forgotten. A loop reports "a value would change" through its result and never computes something undefined.
 */
#ifndef ANNBATCH_CONVERT_H
#define ANNBATCH_CONVERT_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Loops over values are compiled twice where that can be done, and the processor's wide registers are used when it has them. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__has_attribute) && !defined(__SANITIZE_ADDRESS__)
#if __has_attribute(target_clones)
#define VECTORISED __attribute__((target_clones("avx2", "default")))
#endif
#endif
#ifndef VECTORISED
#define VECTORISED
#endif

#define N_TYPES 11

/* code, C type, kind (S signed, U unsigned, F float, B bool), first value above the range */
#define FOR_SOURCE(X, ...)                          \
    X(i1, int8_t, S, 128.0, __VA_ARGS__)            \
    X(i2, int16_t, S, 32768.0, __VA_ARGS__)         \
    X(i4, int32_t, S, 2147483648.0, __VA_ARGS__)    \
    X(i8, int64_t, S, 9223372036854775808.0, __VA_ARGS__) \
    X(u1, uint8_t, U, 256.0, __VA_ARGS__)           \
    X(u2, uint16_t, U, 65536.0, __VA_ARGS__)        \
    X(u4, uint32_t, U, 4294967296.0, __VA_ARGS__)   \
    X(u8, uint64_t, U, 18446744073709551616.0, __VA_ARGS__) \
    X(f4, float, F, 0.0, __VA_ARGS__)               \
    X(f8, double, F, 0.0, __VA_ARGS__)              \
    X(b1, uint8_t, B, 2.0, __VA_ARGS__)

#define FOR_TARGET(X)                 \
    X(i1, int8_t, S, 128.0)           \
    X(i2, int16_t, S, 32768.0)        \
    X(i4, int32_t, S, 2147483648.0)   \
    X(i8, int64_t, S, 9223372036854775808.0) \
    X(u1, uint8_t, U, 256.0)          \
    X(u2, uint16_t, U, 65536.0)       \
    X(u4, uint32_t, U, 4294967296.0)  \
    X(u8, uint64_t, U, 18446744073709551616.0) \
    X(f4, float, F, 0.0)              \
    X(f8, double, F, 0.0)             \
    X(b1, uint8_t, B, 2.0)

/* changed_<source kind>_<target kind>: stores the converted value and says whether it differs from the source value.
 * Rounding from a wide to a narrow float is not a change; becoming infinite is. */
#define INT_TO_INT(v, d, st, dt, above_s, above_d) ((d) = (dt)(v), ((st)(d) != (v)) | (((d) < 0) != ((v) < 0)))
#define INT_TO_FLOAT(v, d, st, dt, above_s, above_d) \
    ((d) = (dt)(v), (d) >= (dt)(above_s) || (st)(d) != (v))
#define FLOAT_IN_RANGE(v, low, above_d) ((double)(v) >= (low) && (double)(v) < (above_d))
#define FLOAT_TO_SIGNED(v, d, st, dt, above_s, above_d) \
    ((d) = (dt)(FLOAT_IN_RANGE(v, -(above_d), above_d) ? (v) : 0), (st)(d) != (v))
#define FLOAT_TO_UNSIGNED(v, d, st, dt, above_s, above_d) \
    ((d) = (dt)(FLOAT_IN_RANGE(v, 0.0, above_d) ? (v) : 0), (st)(d) != (v))

#define changed_S_S INT_TO_INT
#define changed_S_U INT_TO_INT
#define changed_U_S INT_TO_INT
#define changed_U_U INT_TO_INT
#define changed_S_F INT_TO_FLOAT
#define changed_U_F INT_TO_FLOAT
#define changed_F_S FLOAT_TO_SIGNED
#define changed_F_U FLOAT_TO_UNSIGNED
#define changed_F_F(v, d, st, dt, above_s, above_d) ((d) = (dt)(v), isinf(d) && !isinf(v))
#define changed_B_S(v, d, st, dt, above_s, above_d) ((d) = (dt)((v) != 0), 0)
#define changed_B_U changed_B_S
#define changed_B_F changed_B_S
#define changed_B_B changed_B_S
#define changed_S_B(v, d, st, dt, above_s, above_d) ((d) = (v) != 0, (v) != 0 && (v) != 1)
#define changed_U_B changed_S_B
#define changed_F_B changed_S_B

/* Convert n values; nonzero when one of them would change. */
typedef int (*convert_fn)(const char *source, char *target, int64_t n);

#define DEFINE_CONVERT(sn, st, sk, above_s, dn, dt, dk, above_d)                                       \
    VECTORISED static int convert_##sn##_##dn(const char *source, char *target, int64_t n) {           \
        const st *s = (const st *)source;                                                              \
        dt *restrict t = (dt *)target;                                                                 \
        int changed = 0;                                                                               \
        for (int64_t i = 0; i < n; i++) {                                                              \
            st v = s[i];                                                                               \
            dt d;                                                                                      \
            changed |= changed_##sk##_##dk(v, d, st, dt, above_s, above_d);                            \
            t[i] = d;                                                                                  \
        }                                                                                              \
        return changed;                                                                                \
    }
#define DEFINE_TO(dn, dt, dk, above_d) FOR_SOURCE(DEFINE_CONVERT, dn, dt, dk, above_d)
FOR_TARGET(DEFINE_TO)

#define ENTRY(sn, st, sk, above_s, dn, ...) convert_##sn##_##dn,
#define ENTRIES(dn, dt, dk, above_d) {FOR_SOURCE(ENTRY, dn)},
/* [target][source] */
static const convert_fn CONVERT[N_TYPES][N_TYPES] = {FOR_TARGET(ENTRIES)};

/* Column numbers: check 0 <= v < n_columns for all n, then write them, renumbered by new_column when it is not NULL.
 * Returns the position of the first bad one, or -1. */
typedef int64_t (*index_fn)(const char *source, char *target, int64_t n, int64_t n_columns, const int64_t *new_column);

/* The check is a sum of sign bits in a type `wt` as wide as the numbers need: unlike a comparison, that is vectorised for
 * every type also on processors with nothing newer than SSE2. v or limit - v has the sign bit when v is out of range. */
#define DEFINE_INDEX(sn, st, wt, uwt, largest, dn, dt)                                                 \
    VECTORISED static int64_t index_##sn##_##dn(const char *source, char *target, int64_t n, int64_t n_columns, \
                                                const int64_t *new_column) {                           \
        const st *s = (const st *)source;                                                              \
        dt *restrict t = (dt *)target;                                                                 \
        const uwt limit = (uwt)(n_columns - 1 > largest ? largest : n_columns - 1);                    \
        uwt bad = 0;                                                                                   \
        for (int64_t i = 0; i < n; i++) {                                                              \
            uwt v = (uwt)(wt)s[i];                                                                     \
            bad |= v | (limit - v);                                                                    \
        }                                                                                              \
        if ((wt)bad < 0)                                                                               \
            for (int64_t i = 0; i < n; i++)                                                            \
                if ((uint64_t)s[i] >= (uint64_t)n_columns) return i;                                   \
        if (new_column == NULL)                                                                        \
            for (int64_t i = 0; i < n; i++) t[i] = (dt)s[i];                                           \
        else                                                                                           \
            for (int64_t i = 0; i < n; i++) t[i] = (dt)new_column[s[i]];                               \
        return -1;                                                                                     \
    }
#define NARROW int32_t, uint32_t, INT32_MAX
#define WIDE int64_t, uint64_t, INT64_MAX
#define DEFINE_INDEX_(...) DEFINE_INDEX(__VA_ARGS__)
#define FOR_INTEGER(X, ...)                                                                            \
    X(i1, int8_t, NARROW, __VA_ARGS__) X(i2, int16_t, NARROW, __VA_ARGS__) X(i4, int32_t, NARROW, __VA_ARGS__) \
    X(i8, int64_t, WIDE, __VA_ARGS__) X(u1, uint8_t, NARROW, __VA_ARGS__) X(u2, uint16_t, NARROW, __VA_ARGS__) \
    X(u4, uint32_t, WIDE, __VA_ARGS__) X(u8, uint64_t, WIDE, __VA_ARGS__)
FOR_INTEGER(DEFINE_INDEX_, i4, int32_t)
FOR_INTEGER(DEFINE_INDEX_, i8, int64_t)

#define INDEX_ENTRY(sn, st, wt, uwt, largest, dn, dt) index_##sn##_##dn,
#define INDEX_ENTRY_(...) INDEX_ENTRY(__VA_ARGS__)
/* [target is int64][source] */
static const index_fn RENUMBER[2][8] = {{FOR_INTEGER(INDEX_ENTRY_, i4, int32_t)}, {FOR_INTEGER(INDEX_ENTRY_, i8, int64_t)}};

/* Write n items of itemsize bytes to row + new_column[i] * itemsize; -1 drops an item. */
static void scatter_items(const char *items, char *row, int64_t n, int itemsize, const int64_t *new_column) {
#define SCATTER(t)                                                                                     \
    for (int64_t i = 0; i < n; i++)                                                                    \
        if (new_column[i] >= 0) ((t *)row)[new_column[i]] = ((const t *)items)[i];                     \
    break
    switch (itemsize) {
    case 1: SCATTER(uint8_t);
    case 2: SCATTER(uint16_t);
    case 4: SCATTER(uint32_t);
    case 8: SCATTER(uint64_t);
    default:
        for (int64_t i = 0; i < n; i++)
            if (new_column[i] >= 0) memcpy(row + new_column[i] * itemsize, items + i * itemsize, (size_t)itemsize);
    }
#undef SCATTER
}

/* Add the n values of a CSR row to a dense row (zeroed by the caller). Repeated columns add up, as in scipy. A negative
 * column is one that the caller dropped. */
typedef void (*densify_fn)(const char *values, const char *columns, int64_t n, char *row);

#define DEFINE_DENSIFY(dn, dt, in, it)                                                                 \
    static void densify_##dn##_##in(const char *values, const char *columns, int64_t n, char *row) {   \
        const dt *v = (const dt *)values;                                                              \
        const it *c = (const it *)columns;                                                             \
        dt *restrict r = (dt *)row;                                                                    \
        for (int64_t i = 0; i < n; i++)                                                                \
            if (c[i] >= 0) r[c[i]] = (dt)(r[c[i]] + v[i]);                                             \
    }
#define DENSIFY_BOTH(dn, dt) DEFINE_DENSIFY(dn, dt, i4, int32_t) DEFINE_DENSIFY(dn, dt, i8, int64_t)
DENSIFY_BOTH(u1, uint8_t)
DENSIFY_BOTH(u2, uint16_t)
DENSIFY_BOTH(u4, uint32_t)
DENSIFY_BOTH(u8, uint64_t)
DENSIFY_BOTH(f4, float)
DENSIFY_BOTH(f8, double)

static void densify_b1_i4(const char *values, const char *columns, int64_t n, char *row) {
    const int32_t *c = (const int32_t *)columns;
    for (int64_t i = 0; i < n; i++)
        if (c[i] >= 0) row[c[i]] |= values[i];
}
static void densify_b1_i8(const char *values, const char *columns, int64_t n, char *row) {
    const int64_t *c = (const int64_t *)columns;
    for (int64_t i = 0; i < n; i++)
        if (c[i] >= 0) row[c[i]] |= values[i];
}

/* Signed integers add up like unsigned ones, and without undefined overflow. [columns are int64][value type] */
#define DENSIFY_ROW(in)                                                                                \
    {densify_u1_##in, densify_u2_##in, densify_u4_##in, densify_u8_##in, densify_u1_##in, densify_u2_##in, \
     densify_u4_##in, densify_u8_##in, densify_f4_##in, densify_f8_##in, densify_b1_##in}
static const densify_fn DENSIFY[2][N_TYPES] = {DENSIFY_ROW(i4), DENSIFY_ROW(i8)};

#endif
