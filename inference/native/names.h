/* All but threads.c and sets.c is compiled once for each set of instructions, after these lines:
 * what one file offers to the others has the set's name behind its own.
 */
#ifndef NAMES_H
#define NAMES_H

#define NAME_OF_SET(name, set) name##_##set
#define NAMED_FOR(name, set) NAME_OF_SET(name, set)
#define NAME(name) NAMED_FOR(name, SET)

#define linear_arrange NAME(linear_arrange)
#define linear_sums NAME(linear_sums)
#define linear_row NAME(linear_row)

#define attention_most_tokens NAME(attention_most_tokens)
#define attention_scratch NAME(attention_scratch)
#define attention_write NAME(attention_write)
#define attention_run NAME(attention_run)

#define rms_norm NAME(rms_norm)
#define activate NAME(activate)
#define rotate NAME(rotate)
#define add_scaled NAME(add_scaled)
#define cap_logits NAME(cap_logits)

#define qkv_part NAME(qkv_part)
#define prepare_part NAME(prepare_part)
#define attention_part NAME(attention_part)
#define output_part NAME(output_part)
#define gate_up_part NAME(gate_up_part)
#define down_part NAME(down_part)
#define norm_part NAME(norm_part)
#define head_part NAME(head_part)
#define copy_part NAME(copy_part)

#define decoder_interface NAME(decoder_interface)
#define decoder_cache_bytes NAME(decoder_cache_bytes)
#define decoder_open NAME(decoder_open)
#define decoder_close NAME(decoder_close)
#define decoder_step NAME(decoder_step)
#define decoder_copy NAME(decoder_copy)
#define decoder_threads NAME(decoder_threads)

#endif
