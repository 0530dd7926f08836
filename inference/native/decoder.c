/* A layer is five jobs: queries, keys and values; attention; its output; gate and up; down. Norms
 * come between them. What is multiplied is float32 activations and weights in their own type.
 */
#include "decoder.h"
#include "attention.h"
#include "threads.h"
#include "vector.h"

#include <stdlib.h>
#include <string.h>

/* Outs and tokens of one part of a product: enough to be worth a claim, little to wait for. */
#define OUTS_A_PART 48
#define TOKENS_A_PART 64
#define TOKENS_A_NORM 8
#define ALIGNMENT 64

struct unit {
    int64_t row, position, first; /* `first` is the index of its first token */
    int tokens;
    int64_t head;                 /* of keys and values */
};

struct runner {
    const struct decoder *decoder;
    struct threads *threads;
    int64_t most_tokens, hidden, intermediate, qkv, attended, scratch_size;
    float *x, *normed, *projected, *attention, *mlp, *added, *cosines, *sines, *scratch;
    struct unit *units;
    /* Of the pass. */
    const struct span *spans;
    int64_t spans_count, tokens, units_count;
    /* Of the job. */
    const struct layer *layer;
    int64_t layer_index;
    const float *post_norm, *norm;
    float *logits;
    int64_t copy_source, copy_target, copy_length;
};

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t parts_of(int64_t count, int64_t part) { return (count + part - 1) / part; }

int decoder_interface(void) { return DECODER_INTERFACE; }

static int64_t type_bytes(const struct decoder *decoder)
{
    return decoder->type == BFLOAT16 ? 2 : 4;
}

/* Numbers of one head's keys, or values, in one row of one layer. */
static int64_t head_numbers(const struct decoder *decoder)
{
    return (decoder->max_length + GROUP - 1) / GROUP * GROUP * decoder->head_dim;
}

int64_t decoder_cache_bytes(const struct decoder *decoder)
{
    return decoder->layers_count * decoder->kv_heads * 2 * head_numbers(decoder)
        * type_bytes(decoder);
}

static struct head_cache head_cache(const struct decoder *decoder, int64_t row, int64_t layer,
                                    int64_t head)
{
    int64_t bytes = head_numbers(decoder) * type_bytes(decoder);
    int64_t index = (row * decoder->layers_count + layer) * decoder->kv_heads + head;
    char *at = (char *)decoder->cache + index * 2 * bytes;
    return (struct head_cache){ .keys = at, .values = at + bytes };
}

static struct attention attention_of(const struct runner *runner)
{
    const struct decoder *decoder = runner->decoder;
    return (struct attention){
        .type = (enum type)decoder->type,
        .group = (int)(decoder->heads / decoder->kv_heads),
        .head_dim = (int)decoder->head_dim,
        .window = (int)runner->layer->window,
        .softcap = decoder->attention_softcap,
    };
}

/* --- what threads do ------------------------------------------------------------------------- */

/* Which outs and tokens a part of a product is. */
struct block {
    int64_t out, outs, token;
    int tokens;
};

static struct block block_of(int64_t outs, int64_t tokens, int part)
{
    int64_t across = parts_of(tokens, TOKENS_A_PART);
    struct block block = { .out = part / across * OUTS_A_PART,
                           .token = part % across * TOKENS_A_PART };
    block.outs = smaller(OUTS_A_PART, outs - block.out);
    block.tokens = (int)smaller(TOKENS_A_PART, tokens - block.token);
    return block;
}

static int blocks_of(int64_t outs, int64_t tokens)
{
    return (int)(parts_of(outs, OUTS_A_PART) * parts_of(tokens, TOKENS_A_PART));
}

static float *scratch_of(struct runner *runner, int thread)
{
    return runner->scratch + thread * runner->scratch_size;
}

static void qkv_part(void *context, int part, int thread)
{
    (void)thread;
    struct runner *runner = context;
    const struct layer *layer = runner->layer;
    struct block block = block_of(runner->qkv, runner->tokens, part);
    float *to = runner->projected + block.token * runner->qkv + block.out;
    linear_sums((enum type)runner->decoder->type, &layer->qkv, block.out, block.out + block.outs,
                runner->normed + block.token * runner->hidden, block.tokens, to, runner->qkv);
    if (layer->qkv_bias)
        for (int t = 0; t < block.tokens; t++)
            add_scaled(to + t * runner->qkv, layer->qkv_bias + block.out, 1, block.outs);
}

/* Norm and turn a token's heads that share keys, and write the key and value. */
static void prepare_heads(struct runner *runner, int64_t token, int64_t row, int64_t position,
                          int64_t head)
{
    const struct decoder *decoder = runner->decoder;
    const struct layer *layer = runner->layer;
    const int64_t dim = decoder->head_dim, group = decoder->heads / decoder->kv_heads;
    float *projected = runner->projected + token * runner->qkv;
    float *key = projected + (decoder->heads + head) * dim;
    float *value = projected + (decoder->heads + decoder->kv_heads + head) * dim;
    for (int64_t g = 0; g <= group; g++) {
        float *at = g < group ? projected + (head * group + g) * dim : key;
        const float *norm = g < group ? layer->query_norm : layer->key_norm;
        if (norm)
            rms_norm(at, at, norm, dim, decoder->norm_eps);
        if (layer->rope >= 0) {
            int64_t pairs = decoder->ropes[layer->rope].pairs;
            int64_t angles = (layer->rope * runner->most_tokens + token) * (dim / 2);
            rotate(at, runner->cosines + angles, runner->sines + angles, pairs);
        }
        if (g < group)
            for (int64_t d = 0; d < dim; d++)
                at[d] *= decoder->attention_scale;
    }
    struct attention attention = attention_of(runner);
    struct head_cache cache = head_cache(decoder, row, runner->layer_index, head);
    attention_write(&attention, &cache, position, key, value);
}

/* All keys that a unit sees must be there before it runs: a span's tokens are prepared first. */
static void prepare_part(void *context, int part, int thread)
{
    (void)thread;
    struct runner *runner = context;
    const struct unit *unit = &runner->units[part];
    if (unit->tokens == 1)
        return;
    for (int t = 0; t < unit->tokens; t++)
        prepare_heads(runner, unit->first + t, unit->row, unit->position + t, unit->head);
}

static void attention_part(void *context, int part, int thread)
{
    struct runner *runner = context;
    const struct decoder *decoder = runner->decoder;
    const int64_t dim = decoder->head_dim, group = decoder->heads / decoder->kv_heads;
    /* A span's last tokens see most: they come first, so that the others fill the gaps. */
    const struct unit *unit = &runner->units[runner->units_count - 1 - part];
    struct attention attention = attention_of(runner);
    struct head_cache cache = head_cache(decoder, unit->row, runner->layer_index, unit->head);
    if (unit->tokens == 1)
        prepare_heads(runner, unit->first, unit->row, unit->position, unit->head);
    attention_run(&attention, &cache, unit->position, unit->tokens,
                  runner->projected + unit->first * runner->qkv + unit->head * group * dim,
                  runner->qkv,
                  runner->attention + unit->first * runner->attended + unit->head * group * dim,
                  runner->attended, scratch_of(runner, thread));
}

/* Add a product, or keep it until it has been normed. */
static void add_part(struct runner *runner, const struct matrix *matrix, const float *bias,
                     const float *post_norm, const float *from, int part, int thread)
{
    struct block block = block_of(runner->hidden, runner->tokens, part);
    float *sums = scratch_of(runner, thread);
    linear_sums((enum type)runner->decoder->type, matrix, block.out, block.out + block.outs,
                from + block.token * matrix->in, block.tokens, sums, block.outs);
    for (int t = 0; t < block.tokens; t++) {
        int64_t at = (block.token + t) * runner->hidden + block.out;
        if (bias)
            add_scaled(sums + t * block.outs, bias + block.out, 1, block.outs);
        if (post_norm)
            memcpy(runner->added + at, sums + t * block.outs,
                   (size_t)block.outs * sizeof *sums);
        else
            add_scaled(runner->x + at, sums + t * block.outs, runner->decoder->residual_scale,
                       block.outs);
    }
}

static void output_part(void *context, int part, int thread)
{
    struct runner *runner = context;
    const struct layer *layer = runner->layer;
    add_part(runner, &layer->output, layer->output_bias, layer->attention_post_norm,
             runner->attention, part, thread);
}

static void down_part(void *context, int part, int thread)
{
    struct runner *runner = context;
    const struct layer *layer = runner->layer;
    add_part(runner, &layer->down, NULL, layer->mlp_post_norm, runner->mlp, part, thread);
}

static void gate_up_part(void *context, int part, int thread)
{
    struct runner *runner = context;
    const struct decoder *decoder = runner->decoder;
    const struct matrix *matrix = &runner->layer->gate_up;
    struct block block = block_of(runner->intermediate, runner->tokens, part);
    const float *from = runner->normed + block.token * runner->hidden;
    float *gate = runner->mlp + block.token * runner->intermediate + block.out;
    float *up = scratch_of(runner, thread);
    int64_t up_row = runner->intermediate + block.out;
    linear_sums((enum type)decoder->type, matrix, block.out, block.out + block.outs, from,
                block.tokens, gate, runner->intermediate);
    linear_sums((enum type)decoder->type, matrix, up_row, up_row + block.outs, from, block.tokens,
                up, block.outs);
    for (int t = 0; t < block.tokens; t++) {
        float *at = gate + t * runner->intermediate;
        activate((enum activation)decoder->activation, at, up + t * block.outs, block.outs);
        linear_arrange((enum type)decoder->type, at, at, block.outs);
    }
}

/* Add what waits for its norm, then norm what comes next. */
static void norm_part(void *context, int part, int thread)
{
    (void)thread;
    struct runner *runner = context;
    const struct decoder *decoder = runner->decoder;
    const int64_t hidden = runner->hidden, first = (int64_t)part * TOKENS_A_NORM;
    for (int64_t t = first; t < smaller(first + TOKENS_A_NORM, runner->tokens); t++) {
        float *x = runner->x + t * hidden, *added = runner->added + t * hidden;
        float *normed = runner->normed + t * hidden;
        if (runner->post_norm) {
            rms_norm(added, added, runner->post_norm, hidden, decoder->norm_eps);
            add_scaled(x, added, decoder->residual_scale, hidden);
        }
        if (runner->norm) {
            rms_norm(normed, x, runner->norm, hidden, decoder->norm_eps);
            linear_arrange((enum type)decoder->type, normed, normed, hidden);
        }
    }
}

static void head_part(void *context, int part, int thread)
{
    (void)thread;
    struct runner *runner = context;
    const struct decoder *decoder = runner->decoder;
    const int64_t vocabulary = decoder->head.out;
    struct block block = block_of(vocabulary, runner->spans_count, part);
    float *to = runner->logits + block.token * vocabulary + block.out;
    linear_sums((enum type)decoder->type, &decoder->head, block.out, block.out + block.outs,
                runner->normed + block.token * runner->hidden, block.tokens, to, vocabulary);
    if (decoder->logit_scale != 1 || decoder->logit_softcap > 0)
        for (int t = 0; t < block.tokens; t++)
            cap_logits(to + t * vocabulary, decoder->logit_scale, decoder->logit_softcap,
                       block.outs);
}

static void copy_part(void *context, int part, int thread)
{
    (void)thread;
    struct runner *runner = context;
    const struct decoder *decoder = runner->decoder;
    size_t bytes = (size_t)((runner->copy_length + GROUP - 1) / GROUP * GROUP * decoder->head_dim
                            * type_bytes(decoder));
    for (int64_t head = 0; head < decoder->kv_heads; head++) {
        struct head_cache source = head_cache(decoder, runner->copy_source, part, head);
        struct head_cache target = head_cache(decoder, runner->copy_target, part, head);
        memcpy(target.keys, source.keys, bytes);
        memcpy(target.values, source.values, bytes);
    }
}

/* --- a pass ---------------------------------------------------------------------------------- */

static void norm_all(struct runner *runner, const float *post_norm, const float *norm)
{
    runner->post_norm = post_norm;
    runner->norm = norm;
    threads_run(runner->threads, norm_part, runner,
                (int)parts_of(runner->tokens, TOKENS_A_NORM));
}

static void plan_attention(struct runner *runner)
{
    const struct decoder *decoder = runner->decoder;
    const int most = attention_most_tokens((int)(decoder->heads / decoder->kv_heads));
    int64_t token = 0;
    runner->units_count = 0;
    for (int64_t s = 0; s < runner->spans_count; s++) {
        const struct span *span = &runner->spans[s];
        for (int64_t t = 0; t < span->tokens; t += most)
            for (int64_t head = 0; head < decoder->kv_heads; head++)
                runner->units[runner->units_count++] = (struct unit){
                    .row = span->row,
                    .position = span->position + t,
                    .first = token + t,
                    .tokens = (int)smaller(most, span->tokens - t),
                    .head = head,
                };
        token += span->tokens;
    }
}

static void turn(struct runner *runner)
{
    const struct decoder *decoder = runner->decoder;
    for (int64_t r = 0; r < decoder->ropes_count; r++) {
        const struct rope *rope = &decoder->ropes[r];
        int64_t at = r * runner->most_tokens * (decoder->head_dim / 2);
        for (int64_t s = 0; s < runner->spans_count; s++)
            for (int64_t t = 0; t < runner->spans[s].tokens; t++, at += decoder->head_dim / 2)
                for (int64_t i = 0; i < rope->pairs; i++) {
                    float angle = (float)(runner->spans[s].position + t) * rope->frequencies[i];
                    runner->cosines[at + i] = cosf(angle) * rope->scale;
                    runner->sines[at + i] = sinf(angle) * rope->scale;
                }
    }
}

static void embed(struct runner *runner, const int64_t *tokens)
{
    const struct decoder *decoder = runner->decoder;
    for (int64_t t = 0; t < runner->tokens; t++) {
        float *x = runner->x + t * runner->hidden;
        linear_row((enum type)decoder->type, &decoder->embedding, tokens[t], x);
        if (decoder->embedding_scale != 1)
            for (int64_t i = 0; i < runner->hidden; i++)
                x[i] *= decoder->embedding_scale;
    }
}

static void run_layer(struct runner *runner, int64_t index)
{
    const struct decoder *decoder = runner->decoder;
    const struct layer *layer = &decoder->layers[index];
    struct threads *threads = runner->threads;
    const int64_t tokens = runner->tokens;
    runner->layer = layer;
    runner->layer_index = index;
    threads_run(threads, qkv_part, runner, blocks_of(runner->qkv, tokens));
    if (tokens > runner->spans_count)
        threads_run(threads, prepare_part, runner, (int)runner->units_count);
    threads_run(threads, attention_part, runner, (int)runner->units_count);
    threads_run(threads, output_part, runner, blocks_of(runner->hidden, tokens));
    norm_all(runner, layer->attention_post_norm, layer->mlp_norm);
    threads_run(threads, gate_up_part, runner, blocks_of(runner->intermediate, tokens));
    threads_run(threads, down_part, runner, blocks_of(runner->hidden, tokens));
    norm_all(runner, layer->mlp_post_norm,
             index + 1 < decoder->layers_count ? decoder->layers[index + 1].attention_norm : NULL);
}

/* Bring each span's last token to the front, and to the vocabulary. */
static void run_head(struct runner *runner, float *logits)
{
    const int64_t hidden = runner->hidden;
    int64_t last = -1;
    for (int64_t s = 0; s < runner->spans_count; s++) {
        last += runner->spans[s].tokens;
        if (last != s)
            memcpy(runner->x + s * hidden, runner->x + last * hidden,
                   (size_t)hidden * sizeof *runner->x);
    }
    runner->tokens = runner->spans_count;
    runner->logits = logits;
    norm_all(runner, NULL, runner->decoder->norm);
    threads_run(runner->threads, head_part, runner,
                blocks_of(runner->decoder->head.out, runner->spans_count));
}

static int fits(const struct runner *runner, const struct span *spans, int64_t count,
                const int64_t *tokens)
{
    const struct decoder *decoder = runner->decoder;
    int64_t all = 0;
    for (int64_t s = 0; s < count; s++) {
        const struct span *span = &spans[s];
        if (span->row < 0 || span->row >= decoder->rows || span->position < 0 || span->tokens < 1
            || span->position + span->tokens > decoder->max_length)
            return 0;
        all += span->tokens;
        if (all > runner->most_tokens)
            return 0;
    }
    for (int64_t t = 0; t < all; t++)
        if (tokens[t] < 0 || tokens[t] >= decoder->embedding.out)
            return 0;
    return count > 0;
}

int decoder_step(struct runner *runner, const struct span *spans, int64_t count,
                 const int64_t *tokens, float *logits)
{
    if (!fits(runner, spans, count, tokens))
        return -1;
    runner->spans = spans;
    runner->spans_count = count;
    runner->tokens = 0;
    for (int64_t s = 0; s < count; s++)
        runner->tokens += spans[s].tokens;
    plan_attention(runner);
    turn(runner);
    embed(runner, tokens);
    norm_all(runner, NULL, runner->decoder->layers[0].attention_norm);
    for (int64_t index = 0; index < runner->decoder->layers_count; index++)
        run_layer(runner, index);
    if (logits)
        run_head(runner, logits);
    return 0;
}

int decoder_copy(struct runner *runner, int64_t source, int64_t target, int64_t length)
{
    const struct decoder *decoder = runner->decoder;
    if (source < 0 || target < 0 || source >= decoder->rows || target >= decoder->rows
        || length < 0 || length > decoder->max_length)
        return -1;
    runner->copy_source = source;
    runner->copy_target = target;
    runner->copy_length = length;
    if (source != target)
        threads_run(runner->threads, copy_part, runner, (int)decoder->layers_count);
    return 0;
}

/* --- memory ---------------------------------------------------------------------------------- */

static float *numbers(int64_t count)
{
    size_t bytes = (size_t)parts_of(count * (int64_t)sizeof(float), ALIGNMENT) * ALIGNMENT;
    return aligned_alloc(ALIGNMENT, bytes ? bytes : ALIGNMENT);
}

struct runner *decoder_open(const struct decoder *decoder, int threads, int64_t most_tokens)
{
    struct runner *runner = calloc(1, sizeof *runner);
    if (!runner)
        return NULL;
    const int64_t group = decoder->heads / decoder->kv_heads, hidden = decoder->embedding.in;
    const int64_t angles = decoder->ropes_count * most_tokens * (decoder->head_dim / 2);
    runner->decoder = decoder;
    runner->most_tokens = most_tokens;
    runner->hidden = hidden;
    runner->attended = decoder->heads * decoder->head_dim;
    runner->qkv = (decoder->heads + 2 * decoder->kv_heads) * decoder->head_dim;
    runner->intermediate = decoder->layers[0].down.in;
    runner->scratch_size = attention_scratch((int)group, (int)decoder->head_dim);
    if (runner->scratch_size < TOKENS_A_PART * OUTS_A_PART)
        runner->scratch_size = TOKENS_A_PART * OUTS_A_PART;
    /* Threads do not share lines. */
    runner->scratch_size = parts_of(runner->scratch_size, 32) * 32;
    runner->x = numbers(most_tokens * hidden);
    runner->normed = numbers(most_tokens * hidden);
    runner->added = numbers(most_tokens * hidden);
    runner->projected = numbers(most_tokens * runner->qkv);
    runner->attention = numbers(most_tokens * runner->attended);
    runner->mlp = numbers(most_tokens * runner->intermediate);
    runner->cosines = numbers(angles);
    runner->sines = numbers(angles);
    runner->scratch = numbers(threads * runner->scratch_size);
    runner->units = calloc((size_t)(most_tokens * decoder->kv_heads), sizeof *runner->units);
    runner->threads = threads_start(threads);
    if (runner->x && runner->normed && runner->added && runner->projected && runner->attention
        && runner->mlp && runner->cosines && runner->sines && runner->scratch && runner->units
        && runner->threads)
        return runner;
    decoder_close(runner);
    return NULL;
}

void decoder_close(struct runner *runner)
{
    if (runner->threads)
        threads_stop(runner->threads);
    free(runner->x);
    free(runner->normed);
    free(runner->added);
    free(runner->projected);
    free(runner->attention);
    free(runner->mlp);
    free(runner->cosines);
    free(runner->sines);
    free(runner->scratch);
    free(runner->units);
    free(runner);
}
