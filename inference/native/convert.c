#include "convert.h"
#include "vector.h"

static inline float number_at(int64_t type, const void *from, int64_t i)
{
    switch (type) {
    case NUMBER_FLOAT32: return ((const float *)from)[i];
    case NUMBER_BFLOAT16: return bf16_to_float(((const uint16_t *)from)[i]);
    case NUMBER_FLOAT16: return _cvtsh_ss(((const uint16_t *)from)[i]);
    default: return (float)((const double *)from)[i];
    }
}

INLINE void convert_from(const int64_t type, const void *from, int64_t to_type, void *to,
                         int64_t count)
{
    if (to_type == NUMBER_FLOAT32)
        for (int64_t i = 0; i < count; i++)
            ((float *)to)[i] = number_at(type, from, i);
    else
        for (int64_t i = 0; i < count; i++)
            ((uint16_t *)to)[i] = bf16_from_float(number_at(type, from, i));
}

int numbers_convert(int64_t from_type, const void *from, int64_t to_type, void *to, int64_t count)
{
    if (to_type != NUMBER_FLOAT32 && to_type != NUMBER_BFLOAT16)
        return -1;
    switch (from_type) {
    case NUMBER_FLOAT32: convert_from(NUMBER_FLOAT32, from, to_type, to, count); return 0;
    case NUMBER_BFLOAT16: convert_from(NUMBER_BFLOAT16, from, to_type, to, count); return 0;
    case NUMBER_FLOAT16: convert_from(NUMBER_FLOAT16, from, to_type, to, count); return 0;
    case NUMBER_FLOAT64: convert_from(NUMBER_FLOAT64, from, to_type, to, count); return 0;
    default: return -1;
    }
}
