/* What a row's randomness is depends on (seed, step) alone, and every sum is taken in one order, so
 * that neither the other rows nor the number of threads change what a seed gives.
 *
 * Candidates are not sorted: a weight is a positive float, whose bits rise with it, so the last one
 * that is kept is found digit by digit.
 */
#include "sampling.h"
#include "threads.h"
#include "vector.h"

#include <stdlib.h>
#include <string.h>

#define LARGEST_UNIFORM (1.0 - 0x1p-23)
/* Weights that are added up before a token is looked for among them. */
#define BLOCK 1024
/* A digit of a weight; 1.0 is the largest weight there is. */
#define DIGIT_BITS 10
#define DIGITS (1 << DIGIT_BITS)
/* e^x is taken for 0 below: no draw comes so close to an edge. */
#define LEAST_EXPONENT -87.0f

struct sampler {
    struct threads *threads;
    int64_t vocabulary;
    float *scratch; /* for each thread, weights and candidates */
    double *blocks; /* for each thread, sums of blocks */
    int64_t blocks_count;
    /* Of the job. */
    const float *logits;
    struct draw *draws;
    int64_t *tokens;
};

/* --- the largest ----------------------------------------------------------------------------- */

/* The largest number; NaN if there is one. */
static float largest_of(const float *from, int64_t count)
{
    vec most = vec_set(-INFINITY), nan = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        vec x = vec_load(from + i);
        most = vec_max(most, x);
        nan = _mm256_or_ps(nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    }
    float largest = vec_largest(most);
    int found = _mm256_movemask_ps(nan);
    for (; i < count; i++) {
        largest = from[i] > largest ? from[i] : largest;
        found |= from[i] != from[i];
    }
    return found ? NAN : largest;
}

/* The first place of `number`, which is there. */
static int64_t place_of(const float *from, int64_t count, float number)
{
    const vec wanted = vec_set(number);
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        int equal = _mm256_movemask_ps(_mm256_cmp_ps(vec_load(from + i), wanted, _CMP_EQ_OQ));
        if (equal)
            return i + __builtin_ctz((unsigned)equal);
    }
    for (; i < count; i++)
        if (from[i] == number)
            return i;
    return 0;
}

/* --- scores ---------------------------------------------------------------------------------- */

static void penalize(const struct draw *draw, float *scores)
{
    for (int64_t i = 0; i < draw->seen_count; i++) {
        float *score = scores + draw->seen[i], count = draw->counts[i];
        *score = *score > 0 ? *score / draw->repetition : *score * draw->repetition;
        *score -= count * draw->frequency;
        if (count > 0)
            *score -= draw->presence;
    }
}

static void keep_allowed(const uint32_t *mask, float *scores, int64_t vocabulary)
{
    for (int64_t word = 0; word * 32 < vocabulary; word++) {
        if (mask[word] == UINT32_MAX)
            continue;
        const int64_t end = word * 32 + 32 < vocabulary ? word * 32 + 32 : vocabulary;
        for (int64_t i = word * 32; i < end; i++)
            if (!(mask[word] >> (i & 31) & 1))
                scores[i] = -INFINITY;
    }
}

/* --- weights --------------------------------------------------------------------------------- */

/* scores become e^((score - largest) / temperature), so that the largest weight is 1. */
static void weigh(float *scores, int64_t count, float largest, float temperature)
{
    const vec heat = vec_set(temperature), top = vec_set(largest / temperature);
    for (int64_t i = 0; i < count; i += 8) {
        float rest[8];
        const int64_t left = count - i;
        float *at = scores + i;
        if (left < 8) {
            for (int64_t r = 0; r < 8; r++)
                rest[r] = r < left ? at[r] : -INFINITY;
            at = rest;
        }
        vec x = vec_sub(vec_div(vec_load(at), heat), top);
        vec kept = _mm256_cmp_ps(x, vec_set(LEAST_EXPONENT), _CMP_GE_OQ);
        vec_store(at, _mm256_and_ps(vec_exp(x), kept));
        if (left < 8)
            memcpy(scores + i, rest, (size_t)left * sizeof *rest);
    }
}

/* The sum of the weights that are `least` or more. */
static double sum_from(const float *weights, int64_t count, float least)
{
    const vec bound = vec_set(least);
    __m256d low = _mm256_setzero_pd(), high = low;
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        vec w = vec_load(weights + i);
        w = _mm256_and_ps(w, _mm256_cmp_ps(w, bound, _CMP_GE_OQ));
        low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(w)));
        high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(w, 1)));
    }
    double four[4];
    _mm256_storeu_pd(four, _mm256_add_pd(low, high));
    double sum = (four[0] + four[1]) + (four[2] + four[3]);
    for (; i < count; i++)
        sum += weights[i] >= least ? weights[i] : 0;
    return sum;
}

/* Bring the weights that are `least` or more, and not 0, together; how many they are. */
static int64_t gather(float *to, const float *weights, int64_t count, float least)
{
    const vec bound = vec_set(least), zero = _mm256_setzero_ps();
    int64_t found = 0, i = 0;
    for (; i + 8 <= count; i += 8) {
        vec w = vec_load(weights + i);
        int bits = _mm256_movemask_ps(_mm256_and_ps(_mm256_cmp_ps(w, bound, _CMP_GE_OQ),
                                                    _mm256_cmp_ps(w, zero, _CMP_GT_OQ)));
        for (; bits; bits &= bits - 1)
            to[found++] = weights[i + __builtin_ctz((unsigned)bits)];
    }
    for (; i < count; i++)
        if (weights[i] >= least && weights[i] > 0)
            to[found++] = weights[i];
    return found;
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Going down from the largest of some positive weights, the one with which `needed` of them is
 * reached, by number or, if `by_sum`, by sum; the least if it never is. */
static float reach(const float *weights, int64_t count, double needed, int by_sum)
{
    uint32_t prefix = 0;
    double above = 0;
    for (int shift = 2 * DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        double sums[DIGITS] = { 0 };
        uint32_t numbers[DIGITS] = { 0 };
        for (int64_t i = 0; i < count; i++) {
            uint32_t bits = bits_of(weights[i]);
            if (bits >> shift >> DIGIT_BITS != prefix)
                continue;
            sums[bits >> shift & (DIGITS - 1)] += by_sum ? weights[i] : 1;
            numbers[bits >> shift & (DIGITS - 1)]++;
        }
        uint32_t least = 0;
        int digit = DIGITS - 1;
        for (; digit >= 0; digit--) {
            if (!numbers[digit])
                continue;
            least = (uint32_t)digit;
            if (above + sums[digit] >= needed)
                break;
            above += sums[digit];
        }
        if (digit < 0)
            above -= sums[least];
        prefix = prefix << DIGIT_BITS | least;
    }
    float value;
    memcpy(&value, &prefix, sizeof value);
    return value;
}

/* The least weight that top_k, top_p and min_p keep. `candidates` is room for all weights. */
static float least_kept(const struct draw *draw, const float *weights, int64_t count,
                        float *candidates)
{
    float least = 0;
    const int limited = draw->top_k > 0 && draw->top_k < count, nucleus = draw->top_p < 1;
    if (limited || nucleus) {
        double total = sum_from(weights, count, 0);
        /* What is below shares less than what top_p leaves out. */
        double bound = limited ? 0 : (1 - (double)draw->top_p) * total / (double)count * 0.99;
        int64_t found = gather(candidates, weights, count, (float)bound);
        if (limited) {
            least = reach(candidates, found, (double)draw->top_k, 0);
            int64_t more = 0;
            for (int64_t i = 0; i < found; i++)
                more += candidates[i] > least;
            /* Of those as likely as the last one, top_k itself counts some. */
            double above = sum_from(candidates, found, nextafterf(least, 2));
            int64_t equals = found < draw->top_k ? 0 : draw->top_k - more;
            total = found < draw->top_k ? sum_from(candidates, found, 0)
                                        : above + (double)equals * least;
        }
        if (nucleus) {
            float last = reach(candidates, found, (double)draw->top_p * total, 1);
            least = last > least ? last : least;
        }
    }
    return draw->min_p > least ? draw->min_p : least;
}

/* --- drawing --------------------------------------------------------------------------------- */

/* The splitmix64 finaliser: every bit of the result depends on every bit of `value`. */
static uint64_t mix(uint64_t value)
{
    value += 0x9E3779B97F4A7C15u;
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9u;
    value = (value ^ value >> 27) * 0x94D049BB133111EBu;
    return value ^ value >> 31;
}

static float uniform(uint64_t seed, uint64_t step)
{
    double number = (double)(mix(seed ^ mix(step + 1)) >> 11) * 0x1p-53;
    return (float)(number < LARGEST_UNIFORM ? number : LARGEST_UNIFORM);
}

/* The token at `share` of the sum of the weights that are `least` or more. */
static int64_t token_at(const float *weights, int64_t count, float least, float share,
                        double *blocks)
{
    double total = 0;
    for (int64_t first = 0; first < count; first += BLOCK) {
        int64_t size = count - first < BLOCK ? count - first : BLOCK;
        double sum = sum_from(weights + first, size, least);
        blocks[first / BLOCK] = sum;
        total += sum;
    }
    const double wanted = share * total;
    double below = 0;
    int64_t first = 0, last = -1;
    for (; first + BLOCK < count && below + blocks[first / BLOCK] <= wanted; first += BLOCK)
        below += blocks[first / BLOCK];
    for (int64_t i = first; i < count; i++)
        if (weights[i] >= least && weights[i] > 0) {
            last = i;
            below += weights[i];
            if (below > wanted)
                return i;
        }
    /* Sums one by one may fall short of sums of eight by a rounding: the last one, then. */
    while (last < 0 && first-- > 0)
        if (weights[first] >= least && weights[first] > 0)
            last = first;
    return last < 0 ? 0 : last;
}

static int64_t chosen(const struct draw *draw, const float *logits, int64_t count, float *scores,
                      float *candidates, double *blocks)
{
    memcpy(scores, logits, (size_t)count * sizeof *scores);
    for (int64_t i = 0; i < draw->biased_count; i++)
        scores[draw->biased[i]] += draw->biases[i];
    penalize(draw, scores);
    if (draw->mask)
        keep_allowed(draw->mask, scores, count);
    const float largest = largest_of(scores, count);
    const int64_t likeliest = place_of(scores, count, largest);
    /* A grammar may leave nothing. */
    if (draw->temperature == 0 || !isfinite(largest))
        return likeliest;
    weigh(scores, count, largest, draw->temperature);
    const float least = least_kept(draw, scores, count, candidates);
    return token_at(scores, count, least, uniform(draw->seed, draw->step), blocks);
}

/* --- log probabilities ----------------------------------------------------------------------- */

static double sum_of_exponentials(const float *logits, int64_t count, float largest)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i += 8) {
        float eight[8];
        for (int64_t r = 0; r < 8; r++)
            eight[r] = i + r < count ? logits[i + r] : -INFINITY;
        vec x = vec_sub(vec_load(eight), vec_set(largest));
        vec kept = _mm256_cmp_ps(x, vec_set(LEAST_EXPONENT), _CMP_GE_OQ);
        sum += vec_sum(_mm256_and_ps(vec_exp(x), kept));
    }
    return sum;
}

/* The `told` largest, in falling order, the first of equals first. */
static void find_largest(struct draw *draw, const float *logits, int64_t count)
{
    int64_t held = 0;
    for (int64_t i = 0; i < count; i++) {
        if (held == draw->told && (!held || logits[i] <= draw->top_logprobs[held - 1]))
            continue;
        int64_t at = held < draw->told ? held++ : held - 1;
        for (; at > 0 && draw->top_logprobs[at - 1] < logits[i]; at--) {
            draw->top_logprobs[at] = draw->top_logprobs[at - 1];
            draw->top_tokens[at] = draw->top_tokens[at - 1];
        }
        draw->top_logprobs[at] = logits[i];
        draw->top_tokens[at] = i;
    }
}

static void tell(struct draw *draw, const float *logits, int64_t count, float largest)
{
    const float total = largest + (float)log(sum_of_exponentials(logits, count, largest));
    draw->logprob = logits[draw->token] - total;
    find_largest(draw, logits, count);
    for (int64_t i = 0; i < draw->told; i++)
        draw->top_logprobs[i] -= total;
}

/* --- rows ------------------------------------------------------------------------------------ */

static void likeliest_part(void *context, int part, int thread)
{
    (void)thread;
    struct sampler *sampler = context;
    const float *logits = sampler->logits + part * sampler->vocabulary;
    const float largest = largest_of(logits, sampler->vocabulary);
    sampler->tokens[part] =
        isfinite(largest) ? place_of(logits, sampler->vocabulary, largest) : -1;
}

static int is_likeliest(const struct draw *draw)
{
    return draw->temperature == 0 && !draw->biased_count && !draw->seen_count && !draw->mask;
}

static void choose_part(void *context, int part, int thread)
{
    struct sampler *sampler = context;
    const int64_t count = sampler->vocabulary;
    const float *logits = sampler->logits + part * count;
    struct draw *draw = &sampler->draws[part];
    const float largest = largest_of(logits, count);
    draw->token = -1;
    if (!isfinite(largest))
        return;
    float *scratch = sampler->scratch + thread * 2 * count;
    if (is_likeliest(draw))
        draw->token = place_of(logits, count, largest);
    else
        draw->token = chosen(draw, logits, count, scratch, scratch + count,
                             sampler->blocks + thread * sampler->blocks_count);
    if (draw->told >= 0)
        tell(draw, logits, count, largest);
}

static void run(struct sampler *sampler, job_part part, int64_t rows)
{
    if (sampler->threads) {
        threads_run(sampler->threads, part, sampler, (int)rows);
        return;
    }
    for (int row = 0; row < rows; row++)
        part(sampler, row, 0);
}

void sampler_likeliest(struct sampler *sampler, const float *logits, int64_t rows, int64_t *tokens)
{
    sampler->logits = logits;
    sampler->tokens = tokens;
    run(sampler, likeliest_part, rows);
}

void sampler_choose(struct sampler *sampler, const float *logits, int64_t rows, struct draw *draws)
{
    sampler->logits = logits;
    sampler->draws = draws;
    run(sampler, choose_part, rows);
}

struct sampler *sampler_open(struct threads *threads, int64_t vocabulary)
{
    struct sampler *sampler = calloc(1, sizeof *sampler);
    if (!sampler)
        return NULL;
    const size_t count = threads ? (size_t)threads_count(threads) : 1;
    sampler->threads = threads;
    sampler->vocabulary = vocabulary;
    sampler->blocks_count = (vocabulary + BLOCK - 1) / BLOCK;
    sampler->scratch = malloc(count * 2 * (size_t)vocabulary * sizeof *sampler->scratch);
    sampler->blocks = malloc(count * (size_t)sampler->blocks_count * sizeof *sampler->blocks);
    if (sampler->scratch && sampler->blocks)
        return sampler;
    sampler_close(sampler);
    return NULL;
}

void sampler_close(struct sampler *sampler)
{
    free(sampler->scratch);
    free(sampler->blocks);
    free(sampler);
}
