/* Decoding of one chunk, step by step.
 *
 * The codecs themselves come from libraries: C-Blosc2 with the zstd, lz4 and zlib-ng inside it when it was found at build
 * time (ANNBATCH_BLOSC2), libdeflate when it is found at run time. What remains are the small framings that HDF5 filters
 * and numcodecs put around them, checksums, and LZF, which no library offers. Every length that a chunk claims is
 * checked against the memory there is.
 */
#ifndef ANNBATCH_DECODE_H
#define ANNBATCH_DECODE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "_crc32c.h"

#include "_plan.h"

#ifdef ANNBATCH_BLOSC2
#include <blosc2.h>
/* The parts of zstd, lz4 and zlib-ng that libblosc2.a brings along; their headers are not in its wheel. */
size_t ZSTD_decompressDCtx(void *context, void *to, size_t capacity, const void *from, size_t n);
unsigned ZSTD_isError(size_t code);
void *ZSTD_createDCtx(void);
size_t ZSTD_freeDCtx(void *context);
int LZ4_decompress_safe(const char *from, char *to, int n, int capacity);
int zng_uncompress(uint8_t *to, size_t *capacity, const uint8_t *from, size_t n);
#define HAVE_BLOSC2 1
#else
#define HAVE_BLOSC2 0
#endif

enum {
    CODEC_BLOSC, CODEC_ZSTD, CODEC_ZLIB, CODEC_GZIP, CODEC_LZ4, CODEC_LZ4_HDF5, CODEC_LZF, CODEC_SHUFFLE, CODEC_CRC32C,
    CODEC_FLETCHER32, CODEC_PYTHON
};

/* Results below zero. */
enum { BAD_CHUNK = -1, BAD_CHECKSUM = -2, NO_MEMORY = -3 };

/* libdeflate's functions, set once at import when the library is found. */
typedef struct {
    void *(*create)(void);
    void (*destroy)(void *);
    int (*zlib)(void *, const void *, size_t, void *, size_t, size_t *);
    int (*gzip)(void *, const void *, size_t, void *, size_t, size_t *);
} deflate_t;
static deflate_t DEFLATE = {NULL, NULL, NULL, NULL};

static void set_deflate(uintptr_t create, uintptr_t destroy, uintptr_t zlib, uintptr_t gzip) {
    DEFLATE.create = (void *(*)(void))create;
    DEFLATE.destroy = (void (*)(void *))destroy;
    DEFLATE.zlib = (int (*)(void *, const void *, size_t, void *, size_t, size_t *))zlib;
    DEFLATE.gzip = (int (*)(void *, const void *, size_t, void *, size_t, size_t *))gzip;
}

/* Whether a codec can be decoded here, without Python. */
static int can_decode(int kind) {
    switch (kind) {
    case CODEC_BLOSC: case CODEC_ZSTD: case CODEC_LZ4: case CODEC_LZ4_HDF5: return HAVE_BLOSC2;
    case CODEC_ZLIB: return HAVE_BLOSC2 || DEFLATE.create != NULL;
    case CODEC_GZIP: return DEFLATE.create != NULL;
    default: return kind >= CODEC_LZF && kind <= CODEC_FLETCHER32;
    }
}

/* What one thread needs again and again: two buffers that codecs take turns with, the wanted blocks of a Blosc chunk, and
 * values and column numbers of rows that become dense. Buffers grow and stay. */
enum { N_BUFFERS = 5 };
typedef struct {
    char *buffer[N_BUFFERS];
    size_t capacity[N_BUFFERS];
    void *blosc, *zstd, *deflate;
} scratch_t;

static char *scratch_buffer(scratch_t *s, int which, size_t n) {
    if (s->capacity[which] < n) {
        free(s->buffer[which]);
        s->buffer[which] = malloc(n);
        s->capacity[which] = s->buffer[which] ? n : 0;
    }
    return s->buffer[which];
}

static size_t scratch_bytes(const scratch_t *s) {
    size_t n = 0;
    for (int i = 0; i < N_BUFFERS; i++) n += s->capacity[i];
    return n;
}

static void scratch_clear(scratch_t *s) {
    for (int i = 0; i < N_BUFFERS; i++) free(s->buffer[i]);
#ifdef ANNBATCH_BLOSC2
    if (s->blosc) blosc2_free_ctx((blosc2_context *)s->blosc);
    if (s->zstd) ZSTD_freeDCtx(s->zstd);
#endif
    if (s->deflate && DEFLATE.destroy) DEFLATE.destroy(s->deflate);
    memset(s, 0, sizeof(*s));
}

static uint32_t big32(const char *p) {
    const uint8_t *b = (const uint8_t *)p;
    return b[3] | (uint32_t)b[2] << 8 | (uint32_t)b[1] << 16 | (uint32_t)b[0] << 24;
}

/* --- checksums ---------------------------------------------------------------------------------------------------- */

/* The checksum of HDF5's fletcher32 filter: big-endian 16-bit words. */
static uint32_t fletcher32(const char *from, size_t n) {
    const uint8_t *p = (const uint8_t *)from;
    uint32_t a = 0, b = 0;
    size_t words = n / 2;
    while (words) {
        size_t stretch = words > 360 ? 360 : words;
        words -= stretch;
        for (; stretch; stretch--, p += 2) {
            a += (uint32_t)p[0] << 8 | p[1];
            b += a;
        }
        a = (a & 0xffff) + (a >> 16);
        b = (b & 0xffff) + (b >> 16);
    }
    if (n % 2) {
        a += (uint32_t)*p << 8;
        b += a;
        a = (a & 0xffff) + (a >> 16);
        b = (b & 0xffff) + (b >> 16);
    }
    a = (a & 0xffff) + (a >> 16);
    b = (b & 0xffff) + (b >> 16);
    return b << 16 | a;
}

/* --- codecs: n decoded bytes, or a negative result ---------------------------------------------------------------- */

static int64_t decode_lzf(const char *from, size_t n, char *to, size_t capacity) {
    const uint8_t *in = (const uint8_t *)from, *in_end = in + n;
    uint8_t *out = (uint8_t *)to, *out_end = out + capacity;
    while (in < in_end) {
        size_t control = *in++;
        if (control < 32) { /* a run of plain bytes */
            size_t length = control + 1;
            if ((size_t)(in_end - in) < length || (size_t)(out_end - out) < length) return BAD_CHUNK;
            memcpy(out, in, length);
            out += length;
            in += length;
        } else { /* bytes that were there before; they may overlap with what they write */
            size_t length = control >> 5, distance = (control & 31) << 8;
            if (length == 7) {
                if (in == in_end) return BAD_CHUNK;
                length += *in++;
            }
            if (in == in_end) return BAD_CHUNK;
            distance += *in++ + (size_t)1;
            length += 2;
            if ((size_t)(out - (uint8_t *)to) < distance || (size_t)(out_end - out) < length) return BAD_CHUNK;
            const uint8_t *back = out - distance;
            for (size_t i = 0; i < length; i++) out[i] = back[i];
            out += length;
        }
    }
    return out - (uint8_t *)to;
}

static int64_t decode_deflate(scratch_t *s, int kind, const char *from, size_t n, char *to, size_t capacity) {
    size_t done = 0;
    if (DEFLATE.create) {
        if (!s->deflate) s->deflate = DEFLATE.create();
        if (!s->deflate) return NO_MEMORY;
        int bad = (kind == CODEC_ZLIB ? DEFLATE.zlib : DEFLATE.gzip)(s->deflate, from, n, to, capacity, &done);
        return bad ? BAD_CHUNK : (int64_t)done;
    }
#ifdef ANNBATCH_BLOSC2
    if (kind == CODEC_ZLIB) {
        done = capacity;
        return zng_uncompress((uint8_t *)to, &done, (const uint8_t *)from, n) == 0 ? (int64_t)done : BAD_CHUNK;
    }
#endif
    return BAD_CHUNK;
}

static void unshuffle(const char *from, size_t n, char *to, size_t itemsize) {
    if (itemsize <= 1) {
        memcpy(to, from, n);
        return;
    }
    size_t items = n / itemsize, whole = items * itemsize;
#ifdef ANNBATCH_BLOSC2
    if (itemsize < 256 && n < INT32_MAX) {
        if (whole) blosc2_unshuffle((int32_t)itemsize, (int32_t)whole, (const uint8_t *)from, (uint8_t *)to);
        memcpy(to + whole, from + whole, n - whole);
        return;
    }
#endif
    for (size_t b = 0; b < itemsize; b++)
        for (size_t i = 0; i < items; i++) to[i * itemsize + b] = from[b * items + i];
    memcpy(to + whole, from + whole, n - whole);
}

#ifdef ANNBATCH_BLOSC2
enum { BLOSC_HEADER = 16 };

/* The header of a Blosc 1 chunk, which is what Zarr and HDF5 store: checked here, so that a damaged byte cannot make
 * C-Blosc2 look for plugins, take another chunk format, or believe in other sizes. */
static int blosc_header(const char *from, size_t n, int64_t *n_bytes, int64_t *block, int *typesize) {
    if (n < BLOSC_HEADER || from[0] != 2) return BAD_CHUNK;
    int codec = (uint8_t)from[2] >> 5;
    *n_bytes = (int64_t)little32(from + 4);
    *block = (int64_t)little32(from + 8);
    *typesize = (uint8_t)from[3];
    if (codec == 2 || codec > 4 || little32(from + 12) != n || *n_bytes > INT32_MAX || n > INT32_MAX) return BAD_CHUNK;
    if (*typesize < 1 || *block < 1 || *block > INT32_MAX) return BAD_CHUNK;
    return 0;
}

static int blosc_ready(scratch_t *s) {
    if (!s->blosc) {
        blosc2_dparams parameters = BLOSC2_DPARAMS_DEFAULTS;
        parameters.nthreads = 1;
        s->blosc = blosc2_create_dctx(parameters);
    }
    return s->blosc ? 0 : NO_MEMORY;
}

/* Decode the blocks of a Blosc chunk that hold the pieces (their items counted from the start of the chunk, `itemsize`
 * bytes each) to their place in `to`. The other blocks are left as they are. */
static int64_t decode_blosc(scratch_t *s, const char *from, size_t n, char *to, size_t capacity, const piece_t *pieces,
                            int64_t n_pieces, int itemsize) {
    int64_t n_bytes, block;
    int typesize;
    if (blosc_header(from, n, &n_bytes, &block, &typesize) || n_bytes > (int64_t)capacity) return BAD_CHUNK;
    if (blosc_ready(s)) return NO_MEMORY;
    blosc2_context *context = (blosc2_context *)s->blosc;
    int64_t n_blocks = (n_bytes + block - 1) / block;
    if (n_pieces && n_blocks > 1 && block % typesize == 0) {
        char *wanted = scratch_buffer(s, 2, (size_t)n_blocks);
        int64_t n_wanted = 0;
        if (!wanted) return NO_MEMORY;
        memset(wanted, 0, (size_t)n_blocks);
        for (int64_t p = 0; p < n_pieces; p++) {
            int64_t last = ((pieces[p].source + pieces[p].n) * itemsize - 1) / block;
            if (last >= n_blocks) return BAD_CHUNK;
            for (int64_t b = pieces[p].source * itemsize / block; b <= last; b++) {
                n_wanted += !wanted[b];
                wanted[b] = 1;
            }
        }
        if (n_wanted < n_blocks) {
            for (int64_t b = 0; b < n_blocks; b++) {
                if (!wanted[b]) continue;
                int64_t start = b * block, stop;
                while (b + 1 < n_blocks && wanted[b + 1]) b++;
                stop = (b + 1) * block < n_bytes ? (b + 1) * block : n_bytes;
                if (stop % typesize) return BAD_CHUNK;
                if (blosc2_getitem_ctx(context, from, (int32_t)n, (int)(start / typesize), (int)((stop - start) / typesize),
                                       to + start, (int32_t)(stop - start)) != (int)(stop - start))
                    return BAD_CHUNK;
            }
            return n_bytes;
        }
    }
    return blosc2_decompress_ctx(context, from, (int32_t)n, to, (int32_t)(capacity > INT32_MAX ? INT32_MAX : capacity)) == n_bytes
               ? n_bytes
               : BAD_CHUNK;
}

/* HDF5's LZ4 filter: blocks, each with its compressed size in front. */
static int64_t decode_lz4_hdf5(const char *from, size_t n, char *to, size_t capacity) {
    if (n < 12 || big32(from) != 0) return BAD_CHUNK;
    size_t total = big32(from + 4), block = big32(from + 8), done = 0, at = 12;
    if (total > capacity || block == 0) return BAD_CHUNK;
    while (done < total) {
        size_t wanted = total - done < block ? total - done : block, size;
        if (n - at < 4) return BAD_CHUNK;
        size = big32(from + at);
        at += 4;
        if (n - at < size || size > INT32_MAX || wanted > INT32_MAX) return BAD_CHUNK;
        if (size == wanted)
            memcpy(to + done, from + at, size);
        else if (LZ4_decompress_safe(from + at, to + done, (int)size, (int)wanted) != (int)wanted)
            return BAD_CHUNK;
        at += size;
        done += wanted;
    }
    return (int64_t)done;
}
#endif

/* Decode one step that writes its result to `to`. Blosc is asked for the pieces only when `pieces` is not NULL. */
static int64_t decode_step(scratch_t *s, int kind, int parameter, const char *from, size_t n, char *to, size_t capacity,
                           const piece_t *pieces, int64_t n_pieces, int itemsize) {
    switch (kind) {
    case CODEC_ZLIB:
    case CODEC_GZIP: return decode_deflate(s, kind, from, n, to, capacity);
    case CODEC_LZF: return decode_lzf(from, n, to, capacity);
    case CODEC_SHUFFLE:
        if (n > capacity) return BAD_CHUNK;
        unshuffle(from, n, to, (size_t)parameter);
        return (int64_t)n;
#ifdef ANNBATCH_BLOSC2
    case CODEC_BLOSC: return decode_blosc(s, from, n, to, capacity, pieces, pieces ? n_pieces : 0, itemsize);
    case CODEC_ZSTD: {
        if (!s->zstd) s->zstd = ZSTD_createDCtx();
        if (!s->zstd) return NO_MEMORY;
        size_t done = ZSTD_decompressDCtx(s->zstd, to, capacity, from, n);
        return ZSTD_isError(done) ? BAD_CHUNK : (int64_t)done;
    }
    case CODEC_LZ4: {
        if (n < 4 || little32(from) > capacity || little32(from) > INT32_MAX || n > INT32_MAX) return BAD_CHUNK;
        int size = (int)little32(from);
        return LZ4_decompress_safe(from + 4, to, (int)n - 4, size) == size ? size : BAD_CHUNK;
    }
    case CODEC_LZ4_HDF5: return decode_lz4_hdf5(from, n, to, capacity);
#else
    (void)pieces, (void)n_pieces, (void)itemsize;
#endif
    default: return BAD_CHUNK;
    }
}

/* Check and cut off a checksum at the end: the bytes before it. */
static int64_t check_sum(int kind, const char *from, size_t n) {
    if (n < 4) return BAD_CHUNK;
    uint32_t stored = little32(from + n - 4);
    uint32_t found = kind == CODEC_CRC32C ? crc32c(from, n - 4) : fletcher32(from, n - 4);
    return stored == found ? (int64_t)(n - 4) : BAD_CHECKSUM;
}

#endif
