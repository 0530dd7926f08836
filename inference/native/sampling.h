/* Choosing the next token of each row from its logits, each by its own parameters.
 *
 * `engine/native_sampling.py` mirrors these structures; `engine/sampling.py` is the same for torch's
 * tensors and says what each parameter means. Does not know where logits come from.
 */
#ifndef SAMPLING_H
#define SAMPLING_H

#include <stdint.h>

struct threads;
struct sampler;

/* How one row's token is chosen; the order is biases, penalties, mask, temperature, top_k, top_p,
 * min_p. */
struct draw {
    /* Numbers that are added to some tokens' logits. */
    const int64_t *biased;
    const float *biases;
    int64_t biased_count;
    /* Tokens that came before, and how often each was generated; 0 for those of the prompt alone. */
    const int64_t *seen;
    const float *counts;
    int64_t seen_count;
    float repetition, frequency, presence;
    float temperature; /* 0 for the likeliest token */
    /* A bit for each token that may come, the lowest of a word first; NULL for all. */
    const uint32_t *mask;
    int64_t top_k; /* 0 for all */
    float top_p, min_p;
    uint64_t seed, step;
    /* How many of the most likely tokens to tell, -1 for no log probabilities at all. */
    int64_t told;
    /* Filled in. */
    int64_t token; /* -1 where the logits are not finite */
    int64_t *top_tokens; /* `told`, most likely first, the lower id first of equals */
    float *top_logprobs;
    float logprob;
};

#pragma GCC visibility push(default)

/* A sampler that shares rows out among `threads`, or does all itself where that is NULL. NULL
 * without memory. */
struct sampler *sampler_open(struct threads *threads, int64_t vocabulary);
void sampler_close(struct sampler *sampler);

/* The most likely token of each row of `logits` (rows, vocabulary), the first of equals; -1 where
 * they are not finite: where one is NaN, or the largest is infinite. */
void sampler_likeliest(struct sampler *sampler, const float *logits, int64_t rows, int64_t *tokens);

/* A token for each row. `told` must not be more than the vocabulary. */
void sampler_choose(struct sampler *sampler, const float *logits, int64_t rows, struct draw *draws);

#pragma GCC visibility pop

#endif
