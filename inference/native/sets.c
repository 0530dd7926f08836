/* The sets of instructions that the library is compiled for, and which one runs a decoder: the best
 * that the processor and the system have, or the one that ATEN_CPU_CAPABILITY asks for, as torch
 * reads it. Compiled for any x86-64.
 */
#include "decoder.h"

#include <cpuid.h>
#include <stdlib.h>
#include <string.h>

/* Bits of the processor's answers. */
#define FMA (1u << 12)
#define MOVBE (1u << 22)
#define OSXSAVE (1u << 27)
#define F16C (1u << 29)
#define BMI1 (1u << 3)
#define AVX2 (1u << 5)
#define BMI2 (1u << 8)
#define AVX512F (1u << 16)
#define AVX512DQ (1u << 17)
#define AVX512CD (1u << 28)
#define AVX512BW (1u << 30)
#define AVX512VL (1u << 31)
#define AVX512BF16 (1u << 5)
/* Registers that the system keeps for each thread. */
#define YMM 0x06u
#define ZMM 0xE6u

struct set {
    const char *name;
    int64_t (*cache_bytes)(const struct decoder *);
    struct runner *(*open)(const struct decoder *, int, int64_t);
    void (*close)(struct runner *);
    int (*step)(struct runner *, const struct span *, int64_t, const int64_t *, float *);
    int (*copy)(struct runner *, int64_t, int64_t, int64_t);
    struct threads *(*threads)(struct runner *);
};

#define OFFER(of)                                                                                  \
    int64_t decoder_cache_bytes_##of(const struct decoder *);                                      \
    struct runner *decoder_open_##of(const struct decoder *, int, int64_t);                        \
    void decoder_close_##of(struct runner *);                                                      \
    int decoder_step_##of(struct runner *, const struct span *, int64_t, const int64_t *, float *); \
    int decoder_copy_##of(struct runner *, int64_t, int64_t, int64_t);                             \
    struct threads *decoder_threads_##of(struct runner *);                                         \
    static const struct set of = { #of,                                                            \
                                   decoder_cache_bytes_##of,                                       \
                                   decoder_open_##of,                                              \
                                   decoder_close_##of,                                             \
                                   decoder_step_##of,                                              \
                                   decoder_copy_##of,                                              \
                                   decoder_threads_##of };

OFFER(avx2)
OFFER(avx512)

/* What callers hold: a set, and its runner, which is none of its business here. */
struct runner {
    const struct set *set;
    struct runner *own;
};

static int all_of(unsigned answer, unsigned bits) { return (answer & bits) == bits; }

static unsigned kept_registers(void)
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static const struct set *best(int without_avx512)
{
    unsigned eax, ebx, ecx, edx, more = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !all_of(ecx, FMA | MOVBE | F16C | OSXSAVE))
        return NULL;
    const unsigned registers = kept_registers();
    if (!all_of(registers, YMM) || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)
        || !all_of(ebx, AVX2 | BMI1 | BMI2))
        return NULL;
    const unsigned wide = AVX512F | AVX512DQ | AVX512CD | AVX512BW | AVX512VL;
    if (without_avx512 || !all_of(registers, ZMM) || !all_of(ebx, wide) || eax < 1)
        return &avx2;
    __cpuid_count(7, 1, more, ebx, ecx, edx);
    return all_of(more, AVX512BF16) ? &avx512 : &avx2;
}

static const struct set *wanted(void)
{
    const char *capability = getenv("ATEN_CPU_CAPABILITY");
    if (capability && strcmp(capability, "default") == 0)
        return NULL;
    return best(capability && strcmp(capability, "avx2") == 0);
}

int decoder_interface(void) { return DECODER_INTERFACE; }

const char *decoder_instructions(void)
{
    const struct set *set = wanted();
    return set ? set->name : NULL;
}

int64_t decoder_cache_bytes(const struct decoder *decoder)
{
    const struct set *set = wanted();
    return set ? set->cache_bytes(decoder) : 0;
}

struct runner *decoder_open(const struct decoder *decoder, int threads, int64_t most_tokens)
{
    const struct set *set = wanted();
    struct runner *runner = set ? malloc(sizeof *runner) : NULL;
    if (!runner)
        return NULL;
    runner->set = set;
    runner->own = set->open(decoder, threads, most_tokens);
    if (runner->own)
        return runner;
    free(runner);
    return NULL;
}

void decoder_close(struct runner *runner)
{
    runner->set->close(runner->own);
    free(runner);
}

int decoder_step(struct runner *runner, const struct span *spans, int64_t count,
                 const int64_t *tokens, float *logits)
{
    return runner->set->step(runner->own, spans, count, tokens, logits);
}

int decoder_copy(struct runner *runner, int64_t source, int64_t target, int64_t length)
{
    return runner->set->copy(runner->own, source, target, length);
}

struct threads *decoder_threads(struct runner *runner)
{
    return runner->set->threads(runner->own);
}
