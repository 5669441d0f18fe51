// exp(x) for x <= 0: 2^n times a polynomial of the rest (Cephes' expf, relative error 2e-7), in an order of operations
// that vectors and the scalar reference share, so that their results are equal to the last bit.
#pragma once

static const float EXP_LOWEST = -80.0f, EXP_LOG2E = 1.44269504088896f;
static const float EXP_LN2_HIGH = 0.693359375f, EXP_LN2_LOW = -2.12194440e-4f;
static const float EXP_TERMS[6] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                   4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
