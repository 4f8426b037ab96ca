/* CRC-32C, the checksum of Zarr's codec "crc32c" and of shard indexes: by the processor where it has an instruction for it
 * (SSE4.2, ARMv8), which is asked at import, else by tables.
 *
 * The instruction takes three cycles but can begin every cycle, so three stretches of the bytes are worked on at a time. CRCs
 * are linear: what precedes a stretch is brought behind it by tables of what LANE zero bytes do to it. Where the processor
 * multiplies polynomials 512 bits at a time (AVX-512, VPCLMULQDQ), that brings 256 bytes forward at once, in about a third of
 * the time; what is left of them in the end is 16 bytes with the same CRC.
 */
#ifndef ANNBATCH_CRC32C_H
#define ANNBATCH_CRC32C_H

#include <stdint.h>
#include <string.h>

/* To Clang from version 14 on the instruction is a feature of its own, which SSE4.2 brings only as an option of the command line. */
#if defined(__clang__)
#define CRC_FEATURES "sse4.2,crc32"
#else
#define CRC_FEATURES "sse4.2"
#endif

#if defined(__x86_64__) && defined(__GNUC__)
#define CRC_TARGET __attribute__((target(CRC_FEATURES)))
#define CRC_WORD(c, word) (c) = (uint32_t)__builtin_ia32_crc32di((c), (word))
#define CRC_BYTE(c, byte) (c) = __builtin_ia32_crc32qi((c), (byte))
static int crc_instruction_there(void) { return __builtin_cpu_supports("sse4.2"); }
#elif defined(__aarch64__) && defined(__GNUC__) && (defined(__linux__) || defined(__APPLE__))
#define CRC_TARGET
#define CRC_WORD(c, word) __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(c) : "r"((uint64_t)(word)))
#define CRC_BYTE(c, byte) __asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(c) : "r"((uint32_t)(byte)))
#ifdef __linux__
#include <sys/auxv.h>
static int crc_instruction_there(void) { return (getauxval(AT_HWCAP) >> 7) & 1; }
#else
static int crc_instruction_there(void) { return 1; }
#endif
#endif

#if defined(__x86_64__) && (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 10))
#include <immintrin.h>
#define CRC_WIDE_TARGET __attribute__((target(CRC_FEATURES ",pclmul,avx512f,avx512vl,vpclmulqdq")))
static int crc_wide_there(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("vpclmulqdq");
}
#endif

enum { LANE = 256 };

static uint32_t CRC_TABLE[8][256], AFTER_LANE[4][256];
static int CRC_BY_INSTRUCTION = 0, CRC_WIDE = 0;
/* What brings the two halves of 128 bits forward by 2048, 512, 384, 256 and 128 bits: powers of x. */
enum { BY_2048, BY_512, BY_384, BY_256, BY_128, N_FORWARD };
static uint64_t FORWARD[N_FORWARD][2];

static uint32_t little32(const char *p) {
    const uint8_t *b = (const uint8_t *)p;
    return b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static uint32_t crc_after_lane(uint32_t c) {
    return AFTER_LANE[0][c & 255] ^ AFTER_LANE[1][(c >> 8) & 255] ^ AFTER_LANE[2][(c >> 16) & 255] ^ AFTER_LANE[3][c >> 24];
}

/* x to the n-th, modulo the polynomial, bits reversed as everywhere here. */
static uint32_t crc_power(int n) {
    uint32_t c = 0x80000000u;
    for (; n; n--) c = c & 1 ? 0x82f63b78u ^ (c >> 1) : c >> 1;
    return c;
}

static void make_crc_table(void) {
    static const int bits[N_FORWARD] = {2048, 512, 384, 256, 128};
    uint32_t of_bit[32];
    for (int i = 0; i < N_FORWARD; i++) {
        FORWARD[i][0] = crc_power(bits[i] + 31);
        FORWARD[i][1] = crc_power(bits[i] - 33);
    }
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? 0x82f63b78u ^ (c >> 1) : c >> 1;
        CRC_TABLE[0][i] = c;
    }
    for (int t = 1; t < 8; t++)
        for (uint32_t i = 0; i < 256; i++) CRC_TABLE[t][i] = CRC_TABLE[0][CRC_TABLE[t - 1][i] & 255] ^ (CRC_TABLE[t - 1][i] >> 8);
    for (int bit = 0; bit < 32; bit++) {
        uint32_t c = (uint32_t)1 << bit;
        for (int i = 0; i < LANE; i++) c = CRC_TABLE[0][c & 255] ^ (c >> 8);
        of_bit[bit] = c;
    }
    for (int t = 0; t < 4; t++)
        for (uint32_t i = 0; i < 256; i++) {
            AFTER_LANE[t][i] = 0;
            for (int bit = 0; bit < 8; bit++)
                if (i >> bit & 1) AFTER_LANE[t][i] ^= of_bit[8 * t + bit];
        }
#ifdef CRC_WORD
    CRC_BY_INSTRUCTION = crc_instruction_there();
#endif
#ifdef CRC_WIDE_TARGET
    CRC_WIDE = CRC_BY_INSTRUCTION && crc_wide_there();
#endif
}

static uint32_t crc_by_tables(uint32_t c, const uint8_t *p, size_t n) {
    for (; n >= 8; n -= 8, p += 8) {
        uint32_t low = little32((const char *)p) ^ c, high = little32((const char *)p + 4);
        c = CRC_TABLE[7][low & 255] ^ CRC_TABLE[6][(low >> 8) & 255] ^ CRC_TABLE[5][(low >> 16) & 255] ^ CRC_TABLE[4][low >> 24]
            ^ CRC_TABLE[3][high & 255] ^ CRC_TABLE[2][(high >> 8) & 255] ^ CRC_TABLE[1][(high >> 16) & 255] ^ CRC_TABLE[0][high >> 24];
    }
    for (; n; n--, p++) c = CRC_TABLE[0][(c ^ *p) & 255] ^ (c >> 8);
    return c;
}

#ifdef CRC_WORD
CRC_TARGET static uint32_t crc_by_instruction(uint32_t c, const uint8_t *p, size_t n) {
    uint64_t word, second, third;
    for (; n >= 3 * LANE; n -= 3 * LANE, p += 3 * LANE) {
        uint32_t c1 = 0, c2 = 0;
        for (size_t i = 0; i < LANE; i += 8) {
            memcpy(&word, p + i, 8);
            memcpy(&second, p + LANE + i, 8);
            memcpy(&third, p + 2 * LANE + i, 8);
            CRC_WORD(c, word);
            CRC_WORD(c1, second);
            CRC_WORD(c2, third);
        }
        c = crc_after_lane(crc_after_lane(c) ^ c1) ^ c2;
    }
    for (; n >= 8; n -= 8, p += 8) {
        memcpy(&word, p, 8);
        CRC_WORD(c, word);
    }
    for (; n; n--, p++) CRC_BYTE(c, *p);
    return c;
}
#endif

#ifdef CRC_WIDE_TARGET
/* n >= 256 */
CRC_WIDE_TARGET static uint32_t crc_wide(uint32_t c, const uint8_t *p, size_t n) {
#define CRC_FORWARD(x, k) _mm512_xor_si512(_mm512_clmulepi64_epi128(x, k, 0x00), _mm512_clmulepi64_epi128(x, k, 0x11))
#define CRC_LOAD(at) _mm512_loadu_si512((const void *)(at))
    __m512i k = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)FORWARD[BY_2048]));
    __m512i a = _mm512_xor_si512(CRC_LOAD(p), _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)c)));
    __m512i b = CRC_LOAD(p + 64), d = CRC_LOAD(p + 128), e = CRC_LOAD(p + 192);
    __m128i last;
    for (n -= 256, p += 256; n >= 256; n -= 256, p += 256) {
        a = _mm512_xor_si512(CRC_FORWARD(a, k), CRC_LOAD(p));
        b = _mm512_xor_si512(CRC_FORWARD(b, k), CRC_LOAD(p + 64));
        d = _mm512_xor_si512(CRC_FORWARD(d, k), CRC_LOAD(p + 128));
        e = _mm512_xor_si512(CRC_FORWARD(e, k), CRC_LOAD(p + 192));
    }
    k = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)FORWARD[BY_512]));
    b = _mm512_xor_si512(CRC_FORWARD(a, k), b);
    d = _mm512_xor_si512(CRC_FORWARD(b, k), d);
    e = _mm512_xor_si512(CRC_FORWARD(d, k), e);
    last = _mm512_extracti32x4_epi32(e, 3);
    k = _mm512_set_epi64(0, 0, (int64_t)FORWARD[BY_128][1], (int64_t)FORWARD[BY_128][0], (int64_t)FORWARD[BY_256][1],
                         (int64_t)FORWARD[BY_256][0], (int64_t)FORWARD[BY_384][1], (int64_t)FORWARD[BY_384][0]);
    a = CRC_FORWARD(e, k);
    last = _mm_xor_si128(last, _mm_xor_si128(_mm512_castsi512_si128(a), _mm512_extracti32x4_epi32(a, 1)));
    last = _mm_xor_si128(last, _mm512_extracti32x4_epi32(a, 2));
    c = (uint32_t)__builtin_ia32_crc32di(0, (uint64_t)_mm_extract_epi64(last, 0));
    c = (uint32_t)__builtin_ia32_crc32di(c, (uint64_t)_mm_extract_epi64(last, 1));
#undef CRC_FORWARD
#undef CRC_LOAD
    return crc_by_instruction(c, p, n);
}
#endif

/* The ways, from the fastest to the one that every machine has. */
enum { CRC_FASTEST, CRC_NOT_WIDE, CRC_TABLES };

static uint32_t crc32c_by(int way, const char *from, size_t n) {
    const uint8_t *p = (const uint8_t *)from;
#ifdef CRC_WIDE_TARGET
    if (way == CRC_FASTEST && CRC_WIDE && n >= 256) return ~crc_wide(0xffffffffu, p, n);
#endif
#ifdef CRC_WORD
    if (way != CRC_TABLES && CRC_BY_INSTRUCTION) return ~crc_by_instruction(0xffffffffu, p, n);
#endif
    return ~crc_by_tables(0xffffffffu, p, n);
}

static uint32_t crc32c(const char *from, size_t n) { return crc32c_by(CRC_FASTEST, from, n); }

#endif
