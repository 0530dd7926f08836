/* Numbers of one floating point type made into another one's.
 *
 * Knows types. Does not know matrices.
 */
#ifndef CONVERT_H
#define CONVERT_H

#include <stdint.h>

enum number { NUMBER_FLOAT32, NUMBER_BFLOAT16, NUMBER_FLOAT16, NUMBER_FLOAT64 };

#pragma GCC visibility push(default)

/* Convert `count` numbers, to the nearest, ties to even; `to_type` is float32 or bfloat16. 0, or -1
 * where a type is another one. */
int numbers_convert(int64_t from_type, const void *from, int64_t to_type, void *to, int64_t count);

#pragma GCC visibility pop

#endif
