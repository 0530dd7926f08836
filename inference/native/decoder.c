/* A layer is five jobs: queries, keys and values; attention; its output; gate and up; down. Norms
 * come between them. What is multiplied is float32 activations and weights in their own type.
 */
#include "attention.h"
#include "runner.h"

#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 64

int decoder_interface(void) { return DECODER_INTERFACE; }

int64_t decoder_cache_bytes(const struct decoder *decoder)
{
    return decoder->layers_count * decoder->kv_heads * 2 * head_numbers(decoder)
        * type_bytes(decoder);
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

struct threads *decoder_threads(struct runner *runner) { return runner->threads; }

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
    /* Gate and up of one part. */
    if (runner->scratch_size < 2 * TOKENS_A_PART * OUTS_A_PART)
        runner->scratch_size = 2 * TOKENS_A_PART * OUTS_A_PART;
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
