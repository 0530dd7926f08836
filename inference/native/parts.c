/* The parts of a pass's jobs: some outs of a product, some heads of attention, some tokens' norms.
 * Any thread runs any of them; no two write to the same place.
 */
#include "attention.h"
#include "runner.h"

#include <string.h>

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

static float *scratch_of(struct runner *runner, int thread)
{
    return runner->scratch + thread * runner->scratch_size;
}

void qkv_part(void *context, int part, int thread)
{
    (void)thread;
    struct runner *runner = context;
    const struct layer *layer = runner->layer;
    struct block block = block_of(runner->qkv, runner->tokens, part);
    const float *from = runner->normed + block.token * runner->hidden;
    float *to = runner->projected + block.token * runner->qkv + block.out;
    const int64_t end = block.out + block.outs;
    int64_t before = 0; /* outs of the matrices that came already */
    for (int m = 0; m < 3; m++) {
        const struct matrix *matrix = &layer->qkv[m];
        int64_t first = larger(block.out, before), last = smaller(end, before + matrix->out);
        if (first < last)
            linear_sums((enum type)runner->decoder->type, matrix, first - before, last - before,
                        from, block.tokens, to + (first - block.out), runner->qkv);
        before += matrix->out;
    }
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
void prepare_part(void *context, int part, int thread)
{
    (void)thread;
    struct runner *runner = context;
    const struct unit *unit = &runner->units[part];
    if (unit->tokens == 1)
        return;
    for (int t = 0; t < unit->tokens; t++)
        prepare_heads(runner, unit->first + t, unit->row, unit->position + t, unit->head);
}

void attention_part(void *context, int part, int thread)
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
                  runner->attention + unit->first * runner->attended, runner->attended,
                  unit->head * group * dim, scratch_of(runner, thread));
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

void output_part(void *context, int part, int thread)
{
    struct runner *runner = context;
    const struct layer *layer = runner->layer;
    add_part(runner, &layer->output, layer->output_bias, layer->attention_post_norm,
             runner->attention, part, thread);
}

void down_part(void *context, int part, int thread)
{
    struct runner *runner = context;
    const struct layer *layer = runner->layer;
    add_part(runner, &layer->down, NULL, layer->mlp_post_norm, runner->mlp, part, thread);
}

void gate_up_part(void *context, int part, int thread)
{
    struct runner *runner = context;
    const struct decoder *decoder = runner->decoder;
    const struct layer *layer = runner->layer;
    struct block block = block_of(runner->intermediate, runner->tokens, part);
    const float *from = runner->normed + block.token * runner->hidden;
    float *gate = scratch_of(runner, thread), *up = gate + TOKENS_A_PART * OUTS_A_PART;
    linear_sums((enum type)decoder->type, &layer->gate, block.out, block.out + block.outs, from,
                block.tokens, gate, block.outs);
    linear_sums((enum type)decoder->type, &layer->up, block.out, block.out + block.outs, from,
                block.tokens, up, block.outs);
    for (int t = 0; t < block.tokens; t++) {
        float *at = gate + t * block.outs;
        activate((enum activation)decoder->activation, at, up + t * block.outs, block.outs);
        linear_arrange((enum type)decoder->type,
                       runner->mlp + (block.token + t) * runner->intermediate, block.out, at,
                       block.outs);
    }
}

/* Add what waits for its norm, then norm what comes next. */
void norm_part(void *context, int part, int thread)
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
            linear_arrange((enum type)decoder->type, normed, 0, normed, hidden);
        }
    }
}

void head_part(void *context, int part, int thread)
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

void copy_part(void *context, int part, int thread)
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
