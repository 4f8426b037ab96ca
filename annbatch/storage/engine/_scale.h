/* The total of a row, and its values in a model's scale: plain loops over a row that is still in the cache. */
#ifndef ANNBATCH_SCALE_H
#define ANNBATCH_SCALE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef _MSC_VER
#include <intrin.h>
#endif

#include "_convert.h"

/* The sum of n values. In the same order however the row came together: the total of a row depends on nothing but the row. */
typedef double (*total_fn)(const char *values, int64_t n);

/* Whole numbers of up to 4 bytes add up without error. */
#define DEFINE_INTEGER_TOTAL(sn, st)                                                                   \
    VECTORISED static double total_##sn(const char *values, int64_t n) {                               \
        const st *v = (const st *)values;                                                              \
        int64_t sum = 0;                                                                               \
        for (int64_t i = 0; i < n; i++) sum += v[i];                                                   \
        return (double)sum;                                                                            \
    }
/* Eight sums, for the processor's wide registers, in an order of their own and not of the compiler's. */
#define DEFINE_TOTAL(sn, st)                                                                           \
    VECTORISED static double total_##sn(const char *values, int64_t n) {                               \
        const st *v = (const st *)values;                                                              \
        double sum[8] = {0, 0, 0, 0, 0, 0, 0, 0}, rest = 0;                                            \
        int64_t i = 0;                                                                                 \
        for (; i + 8 <= n; i += 8)                                                                     \
            for (int k = 0; k < 8; k++) sum[k] += (double)v[i + k];                                    \
        for (; i < n; i++) rest += (double)v[i];                                                       \
        return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7])) + rest; \
    }
DEFINE_INTEGER_TOTAL(i1, int8_t)
DEFINE_INTEGER_TOTAL(i2, int16_t)
DEFINE_INTEGER_TOTAL(i4, int32_t)
DEFINE_INTEGER_TOTAL(u1, uint8_t)
DEFINE_INTEGER_TOTAL(u2, uint16_t)
DEFINE_INTEGER_TOTAL(u4, uint32_t)
DEFINE_TOTAL(i8, int64_t)
DEFINE_TOTAL(u8, uint64_t)
DEFINE_TOTAL(f4, float)
DEFINE_TOTAL(f8, double)

/* By dtype code, as in _convert.h. */
static const total_fn TOTAL[N_TYPES] = {total_i1, total_i2, total_i4, total_i8, total_u1, total_u2,
                                        total_u4, total_u8, total_f4, total_f8, total_u1};

/* Where multiplying and adding can be one instruction, it is: a third of the time of a logarithm. The last bit of a result may
 * therefore differ between kinds of processors, but for nothing else. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__SANITIZE_ADDRESS__)
#define HAVE_FUSED (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#define FUSED __attribute__((target("avx2,fma")))
#define INLINE static inline __attribute__((always_inline))
#else
#define HAVE_FUSED 0
#define FUSED
#define INLINE static inline
#endif

/* log(1 + x) for 0 <= x < 1e30, to a relative 3e-7. 1 + x is 2^e * m with m between sqrt(1/2) and sqrt(2), and
 * log(m) = f * P(f) with f = m - 1 = x * 2^-e + (2^-e - 1): where e is 0 that is x itself, so that nothing of a small x is lost.
 * P was fitted to log(1 + f) / f by weighted least squares; its relative error is 6e-8. */
INLINE float log_1p(float x) {
    const uint32_t one = 0x3f800000, root = 0x3f3504f3; /* the bits of 1 and of sqrt(1/2) */
    float u = 1.0f + x, power, f, f2, f4, p;
    uint32_t bits, power_bits;
    int32_t e;
    memcpy(&bits, &u, 4);
    bits -= root;
    e = (int32_t)bits >> 23;
    power_bits = one - (bits & 0xff800000);
    memcpy(&power, &power_bits, 4);
    f = x * power + (power - 1.0f);
    f2 = f * f;
    f4 = f2 * f2;
    p = (0.199568331241608f - 0.165623933076859f * f) + (0.149522691965103f - 0.143668472766876f * f) * f2 +
        0.0872235372662544f * f4;
    p = (1.0f - 0.499999880790710f * f) + (0.333341866731644f - 0.250020742416382f * f) * f2 + p * f4;
    return (float)e * 0.693147182464600f + p * f;
}

#define LARGEST_X 1e30f

/* Multiply n floats by a factor, and take log(1 + v) of each. */
VECTORISED static void multiply_f4(float *v, int64_t n, float factor) {
    for (int64_t i = 0; i < n; i++) v[i] *= factor;
}

FUSED static void log_f4_fused(float *v, int64_t n, float factor) {
    for (int64_t i = 0; i < n; i++) v[i] = log_1p(v[i] * factor);
}

static void log_f4(float *v, int64_t n, float factor) {
    if (HAVE_FUSED)
        log_f4_fused(v, n, factor);
    else
        for (int64_t i = 0; i < n; i++) v[i] = log_1p(v[i] * factor);
}

/* The largest of n floats by their bits: infinite, not a number or negative ones are larger than all others. */
VECTORISED static uint32_t largest_bits(const float *v, int64_t n) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, v + i, 4);
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

static inline float factor_of(double total, double target_sum) {
    return (float)(target_sum > 0 && total != 0 ? target_sum / total : 1.0);
}

/* Scale the n values of a row with this total in place; a target_sum of 0 does not normalise. */
typedef void (*scale_fn)(char *values, int64_t n, double total, double target_sum, int log1p_too);

static void scale_f4(char *values, int64_t n, double total, double target_sum, int log1p_too) {
    float *v = (float *)values, factor = factor_of(total, target_sum);
    uint32_t bits;
    float largest;
    if (!log1p_too) {
        if (factor != 1.0f) multiply_f4(v, n, factor);
        return;
    }
    bits = largest_bits(v, n);
    memcpy(&largest, &bits, 4);
    if (bits < 0x7f800000 && factor >= 0 && largest * factor < LARGEST_X)
        log_f4(v, n, factor);
    else
        for (int64_t i = 0; i < n; i++) v[i] = (float)log1p((double)v[i] * factor);
}

static void scale_f8(char *values, int64_t n, double total, double target_sum, int log1p_too) {
    double *v = (double *)values;
    double factor = target_sum > 0 && total != 0 ? target_sum / total : 1.0;
    for (int64_t i = 0; i < n; i++) v[i] *= factor;
    if (log1p_too)
        for (int64_t i = 0; i < n; i++) v[i] = log1p(v[i]);
}

/* By dtype code; only floats can be scaled. */
static const scale_fn SCALE[N_TYPES] = {NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, scale_f4, scale_f8, NULL};

/* Counts are small whole numbers: of each that a row has, the logarithm is taken once for the row. Writes the n counts of a whole
 * row to `target` as floats, normalised and with the logarithm taken, as converting and scale_f4 would. Returns 0, and has
 * written nothing, where that takes more. */
typedef int (*log_counts_fn)(const char *source, float *target, int64_t n, double target_sum, double *total);

enum { MAX_LOGARITHMS = 1024 };

/* Sums of 32 bits are twice as fast as longer ones; 2^15 values of 16 bits fit. */
#define DEFINE_LOG_COUNTS(sn, st)                                                                      \
    VECTORISED static int64_t total_and_largest_##sn(const st *v, int64_t n, int *largest) {           \
        int64_t total = 0;                                                                             \
        st most = 0;                                                                                   \
        while (n > 0) {                                                                                \
            int64_t m = n < 32768 ? n : 32768;                                                         \
            uint32_t sum = 0;                                                                          \
            for (int64_t i = 0; i < m; i++) {                                                          \
                sum += v[i];                                                                           \
                most = v[i] > most ? v[i] : most;                                                      \
            }                                                                                          \
            total += sum;                                                                              \
            v += m;                                                                                    \
            n -= m;                                                                                    \
        }                                                                                              \
        *largest = most;                                                                               \
        return total;                                                                                  \
    }                                                                                                  \
    static int log_counts_##sn(const char *source, float *target, int64_t n, double target_sum, double *total) { \
        const st *v = (const st *)source;                                                              \
        float logarithm[MAX_LOGARITHMS], factor;                                                       \
        int largest;                                                                                   \
        int64_t sum = total_and_largest_##sn(v, n, &largest);                                          \
        factor = factor_of((double)sum, target_sum);                                                   \
        if (largest >= MAX_LOGARITHMS || 4 * largest > n || !((float)largest * factor < LARGEST_X)) return 0; \
        for (int i = 0; i <= largest; i++) logarithm[i] = (float)i;                                    \
        log_f4(logarithm, largest + 1, factor);                                                        \
        for (int64_t i = 0; i < n; i++) target[i] = logarithm[v[i]];                                   \
        *total = (double)sum;                                                                          \
        return 1;                                                                                      \
    }
DEFINE_LOG_COUNTS(u1, uint8_t)
DEFINE_LOG_COUNTS(u2, uint16_t)

/* By dtype code. */
static const log_counts_fn LOG_COUNTS[N_TYPES] = {NULL, NULL, NULL, NULL, log_counts_u1, log_counts_u2,
                                                  NULL, NULL, NULL, NULL, NULL};

/* Write n floats as counts; 0 when one is no whole number in 0 <= v < MAX_LOGARITHMS. A sum with 2^23 is rounded to a whole number,
 * which are then its last bits. */
VECTORISED static int counts_of_floats(const float *v, int64_t n, uint16_t *counts) {
    const float base = 8388608.0f;
    uint32_t base_bits, other = 0;
    memcpy(&base_bits, &base, 4);
    for (int64_t i = 0; i < n; i++) {
        float sum = v[i] + base, whole = sum - base;
        uint32_t bits, whole_bits, count;
        memcpy(&bits, v + i, 4);
        memcpy(&whole_bits, &whole, 4);
        memcpy(&count, &sum, 4);
        count -= base_bits;
        counts[i] = (uint16_t)count;
        other |= (bits ^ whole_bits) | (count & ~(uint32_t)(MAX_LOGARITHMS - 1));
    }
    return other == 0;
}

enum { MAX_COUNTS = 8192 };

/* Scale the n values of a row in place; returns their total. */
static double scale_row_f4(char *values, int64_t n, double target_sum, int log1p_too) {
    float *v = (float *)values;
    uint16_t counts[MAX_COUNTS];
    double total;
    if (log1p_too && n > 16 && n <= MAX_COUNTS && counts_of_floats(v, 16, counts) && counts_of_floats(v, n, counts) &&
        log_counts_u2((char *)counts, v, n, target_sum, &total))
        return total;
    total = total_f4(values, n);
    if (target_sum > 0 || log1p_too) scale_f4(values, n, total, target_sum, log1p_too);
    return total;
}

/* Count down by n what is missing of something that several threads bring; the count that is left. */
static inline int64_t less_missing(int64_t *missing, int64_t n) {
#ifdef _MSC_VER
    return _InterlockedExchangeAdd64((volatile long long *)missing, -n) - n;
#else
    return __atomic_sub_fetch(missing, n, __ATOMIC_ACQ_REL);
#endif
}

#endif
