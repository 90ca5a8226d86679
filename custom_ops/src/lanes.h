// The few vector operations that differ between instruction sets. kernels.inl is written on top of them once and
// compiled once per instruction set; this header picks the implementation from the compiler's target.
//
// Lanes: F holds kWidth floats, I as many int32, W kWidth/2 uint64. Intrinsics rather than auto-vectorization where
// GCC 12 would not do it (32x32->64 multiplies, min and max, rounding).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Everything here has internal linkage: each instruction set's object file must keep its own copy.
namespace {
namespace lanes {

#if defined(__AVX512F__) && defined(__AVX512DQ__)

constexpr int kWidth = 16;
using F = __m512;
using I = __m512i;
using W = __m512i;

// load_some and store_some: the first count lanes, 0 in the others, nothing else in memory touched.
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F v) { _mm512_storeu_ps(p, v); }
inline __mmask16 first(int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }
inline F load_some(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(first(count), p); }
inline void store_some(float* p, int64_t count, F v) { _mm512_mask_storeu_ps(p, first(count), v); }
inline F set(float v) { return _mm512_set1_ps(v); }
inline I set_int(int32_t v) { return _mm512_set1_epi32(v); }
inline W set_wide(uint64_t v) { return _mm512_set1_epi64(static_cast<long long>(v)); }
// Block offsets such that unpack_low/high of (cos, sin) come out in block order.
inline W block_offsets() { return _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0); }
inline W add_wide(W a, W b) { return _mm512_add_epi64(a, b); }
inline W multiply_low_halves(W a, W b) { return _mm512_mul_epu32(a, b); }
inline W high_half(W a) { return _mm512_srli_epi64(a, 32); }
inline W xor3(W a, W b, W c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
// Lane pairs (low half of a, low half of b).
inline I pair(W a, W b) { return _mm512_mask_shuffle_epi32(a, 0xAAAA, b, _MM_PERM_CCAA); }
inline void store_ints(uint32_t* p, I v) { _mm512_storeu_si512(p, v); }
inline I unpack_low(I a, I b) { return _mm512_unpacklo_epi32(a, b); }
inline I unpack_high(I a, I b) { return _mm512_unpackhi_epi32(a, b); }
inline F unpack_low(F a, F b) { return _mm512_unpacklo_ps(a, b); }
inline F unpack_high(F a, F b) { return _mm512_unpackhi_ps(a, b); }
template <int kBits>
inline I shift_right(I v) {
  return _mm512_srli_epi32(v, kBits);
}
template <int kBits>
inline I shift_right_signed(I v) {
  return _mm512_srai_epi32(v, kBits);
}
template <int kBits>
inline I shift_left(I v) {
  return _mm512_slli_epi32(v, kBits);
}
inline I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
inline I subtract_int(I a, I b) { return _mm512_sub_epi32(a, b); }
inline I and_int(I a, I b) { return _mm512_and_si512(a, b); }
inline I maximum_int(I a, I b) { return _mm512_max_epi32(a, b); }
inline F to_float(I v) { return _mm512_cvtepi32_ps(v); }
inline I bits(F v) { return _mm512_castps_si512(v); }
inline F from_bits(I v) { return _mm512_castsi512_ps(v); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F subtract(F a, F b) { return _mm512_sub_ps(a, b); }
inline F multiply(F a, F b) { return _mm512_mul_ps(a, b); }
inline F divide(F a, F b) { return _mm512_div_ps(a, b); }
inline F multiply_add(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F square_root(F v) { return _mm512_sqrt_ps(v); }
inline F minimum(F a, F b) { return _mm512_min_ps(a, b); }
inline F maximum(F a, F b) { return _mm512_max_ps(a, b); }
inline F absolute(F v) { return _mm512_abs_ps(v); }
inline F flip_sign(F v, I sign_bits) { return _mm512_xor_ps(v, _mm512_castsi512_ps(sign_bits)); }
inline F round_even(F v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F floor_of(F v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
// Where the lowest bit of chooser is set: b, else a.
inline F choose(I chooser, F a, F b) {
  return _mm512_mask_blend_ps(_mm512_test_epi32_mask(chooser, _mm512_set1_epi32(1)), a, b);
}
// Where a < b: yes, else no.
inline F where_less(F a, F b, F yes, F no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
inline float sum(F v) { return _mm512_reduce_add_ps(v); }
inline float largest(F v) { return _mm512_reduce_max_ps(v); }
inline int32_t largest_int(I v) { return _mm512_reduce_max_epi32(v); }

#define EMU_LOOK_UP
inline F exponent_of(F v) { return _mm512_getexp_ps(v); }  // of v = m 2^e with m in [1, 2), for v > 0
inline F mantissa_of(F v) { return _mm512_getmant_ps(v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero); }
inline F look_up(F table, I place) { return _mm512_permutexvar_ps(place, table); }  // place: its low 4 bits count
inline F subtract_product(F a, F b, F c) { return _mm512_fnmadd_ps(b, c, a); }

#if defined(__AVX512VNNI__)
#define EMU_BYTE_PRODUCTS
inline I load_ints(const float* p) { return _mm512_loadu_si512(p); }
inline void store_ints(float* p, I v) { _mm512_storeu_si512(p, v); }
inline I or_int(I a, I b) { return _mm512_or_si512(a, b); }
inline I xor_int(I a, I b) { return _mm512_xor_si512(a, b); }
inline I to_int(F v) { return _mm512_cvtps_epi32(v); }
// sum + the four products of unsigned bytes of a and signed bytes of b, in each lane.
// Not the intrinsic, because GCC 12 copies every sum before it, which halves the speed of a product.
inline I add_byte_products(I sum, I a, I b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}
// The first count lanes from bytes, the others as given.
inline I load_some_bytes(const uint8_t* p, int64_t count, uint8_t other) {
  return _mm512_cvtepu8_epi32(_mm_mask_loadu_epi8(_mm_set1_epi8(static_cast<char>(other)), first(count), p));
}
// The first count lanes as bytes, larger ones as 255.
inline void store_some_bytes(uint8_t* p, int64_t count, I v) { _mm512_mask_cvtusepi32_storeu_epi8(p, first(count), v); }
#endif

#elif defined(__AVX2__) && defined(__FMA__)

constexpr int kWidth = 8;
using F = __m256;
using I = __m256i;
using W = __m256i;

inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F v) { _mm256_storeu_ps(p, v); }
inline I first(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline F load_some(const float* p, int64_t count) { return _mm256_maskload_ps(p, first(count)); }
inline void store_some(float* p, int64_t count, F v) { _mm256_maskstore_ps(p, first(count), v); }
inline F set(float v) { return _mm256_set1_ps(v); }
inline I set_int(int32_t v) { return _mm256_set1_epi32(v); }
inline W set_wide(uint64_t v) { return _mm256_set1_epi64x(static_cast<long long>(v)); }
inline W block_offsets() { return _mm256_set_epi64x(3, 1, 2, 0); }
inline W add_wide(W a, W b) { return _mm256_add_epi64(a, b); }
inline W multiply_low_halves(W a, W b) { return _mm256_mul_epu32(a, b); }
inline W high_half(W a) { return _mm256_srli_epi64(a, 32); }
inline W xor3(W a, W b, W c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
inline I pair(W a, W b) { return _mm256_blend_epi32(a, _mm256_slli_epi64(b, 32), 0xAA); }
inline void store_ints(uint32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline I unpack_low(I a, I b) { return _mm256_unpacklo_epi32(a, b); }
inline I unpack_high(I a, I b) { return _mm256_unpackhi_epi32(a, b); }
inline F unpack_low(F a, F b) { return _mm256_unpacklo_ps(a, b); }
inline F unpack_high(F a, F b) { return _mm256_unpackhi_ps(a, b); }
template <int kBits>
inline I shift_right(I v) {
  return _mm256_srli_epi32(v, kBits);
}
template <int kBits>
inline I shift_right_signed(I v) {
  return _mm256_srai_epi32(v, kBits);
}
template <int kBits>
inline I shift_left(I v) {
  return _mm256_slli_epi32(v, kBits);
}
inline I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
inline I subtract_int(I a, I b) { return _mm256_sub_epi32(a, b); }
inline I and_int(I a, I b) { return _mm256_and_si256(a, b); }
inline I maximum_int(I a, I b) { return _mm256_max_epi32(a, b); }
inline F to_float(I v) { return _mm256_cvtepi32_ps(v); }
inline I bits(F v) { return _mm256_castps_si256(v); }
inline F from_bits(I v) { return _mm256_castsi256_ps(v); }
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F subtract(F a, F b) { return _mm256_sub_ps(a, b); }
inline F multiply(F a, F b) { return _mm256_mul_ps(a, b); }
inline F divide(F a, F b) { return _mm256_div_ps(a, b); }
inline F multiply_add(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F square_root(F v) { return _mm256_sqrt_ps(v); }
inline F minimum(F a, F b) { return _mm256_min_ps(a, b); }
inline F maximum(F a, F b) { return _mm256_max_ps(a, b); }
inline F absolute(F v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
inline F flip_sign(F v, I sign_bits) { return _mm256_xor_ps(v, _mm256_castsi256_ps(sign_bits)); }
inline F round_even(F v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F floor_of(F v) { return _mm256_floor_ps(v); }
inline F choose(I chooser, F a, F b) {
  return _mm256_blendv_ps(a, b, _mm256_castsi256_ps(_mm256_slli_epi32(chooser, 31)));
}
inline F where_less(F a, F b, F yes, F no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
inline float sum(F v) {
  alignas(32) float parts[kWidth];
  _mm256_store_ps(parts, v);
  return ((parts[0] + parts[4]) + (parts[1] + parts[5])) + ((parts[2] + parts[6]) + (parts[3] + parts[7]));
}
inline float largest(F v) {
  alignas(32) float parts[kWidth];
  _mm256_store_ps(parts, v);
  float result = parts[0];
  for (int i = 1; i < kWidth; ++i) result = parts[i] > result ? parts[i] : result;
  return result;
}
inline int32_t largest_int(I v) {
  alignas(32) int32_t parts[kWidth];
  _mm256_store_si256(reinterpret_cast<__m256i*>(parts), v);
  int32_t result = parts[0];
  for (int i = 1; i < kWidth; ++i) result = parts[i] > result ? parts[i] : result;
  return result;
}

#else

// Any processor: the compiler's vector extension, four floats at a time (SSE2 on x86-64, NEON on Arm).
constexpr int kWidth = 4;
typedef float F __attribute__((vector_size(16)));
typedef int32_t I __attribute__((vector_size(16)));
typedef uint32_t U __attribute__((vector_size(16)));
typedef uint64_t W __attribute__((vector_size(16)));

inline F load(const float* p) {
  F v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
inline F load_some(const float* p, int64_t count) {
  F v = {};
  std::memcpy(&v, p, static_cast<size_t>(count) * sizeof(float));
  return v;
}
inline void store_some(float* p, int64_t count, F v) { std::memcpy(p, &v, static_cast<size_t>(count) * sizeof(float)); }
inline F set(float v) { return F{v, v, v, v}; }
inline I set_int(int32_t v) { return I{v, v, v, v}; }
inline W set_wide(uint64_t v) { return W{v, v}; }
inline W block_offsets() { return W{0, 1}; }
inline W add_wide(W a, W b) { return a + b; }
inline W multiply_low_halves(W a, W b) { return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu); }
inline W high_half(W a) { return a >> 32; }
inline W xor3(W a, W b, W c) { return a ^ b ^ c; }
inline I pair(W a, W b) { return (I)((a & 0xFFFFFFFFu) | (b << 32)); }
inline void store_ints(uint32_t* p, I v) { std::memcpy(p, &v, sizeof v); }
inline I unpack_low(I a, I b) { return I{a[0], b[0], a[1], b[1]}; }
inline I unpack_high(I a, I b) { return I{a[2], b[2], a[3], b[3]}; }
inline F unpack_low(F a, F b) { return F{a[0], b[0], a[1], b[1]}; }
inline F unpack_high(F a, F b) { return F{a[2], b[2], a[3], b[3]}; }
template <int kBits>
inline I shift_right(I v) {
  return (I)((U)v >> kBits);
}
template <int kBits>
inline I shift_right_signed(I v) {
  return v >> kBits;
}
template <int kBits>
inline I shift_left(I v) {
  return (I)((U)v << kBits);
}
inline I add_int(I a, I b) { return (I)((U)a + (U)b); }
inline I subtract_int(I a, I b) { return (I)((U)a - (U)b); }
inline I and_int(I a, I b) { return a & b; }
inline I maximum_int(I a, I b) { return a > b ? a : b; }
inline F to_float(I v) { return __builtin_convertvector(v, F); }
inline I bits(F v) { return (I)v; }
inline F from_bits(I v) { return (F)v; }
inline F add(F a, F b) { return a + b; }
inline F subtract(F a, F b) { return a - b; }
inline F multiply(F a, F b) { return a * b; }
inline F divide(F a, F b) { return a / b; }
#if defined(__aarch64__)
inline F multiply_add(F a, F b, F c) { return vfmaq_f32(c, a, b); }
#else
inline F multiply_add(F a, F b, F c) { return a * b + c; }
#endif
inline F square_root(F v) { return F{std::sqrt(v[0]), std::sqrt(v[1]), std::sqrt(v[2]), std::sqrt(v[3])}; }
inline F minimum(F a, F b) { return a < b ? a : b; }
inline F maximum(F a, F b) { return a > b ? a : b; }
inline F absolute(F v) { return (F)((I)v & 0x7FFFFFFF); }
inline F flip_sign(F v, I sign_bits) { return (F)((I)v ^ sign_bits); }
// Adding and taking away 1.5 * 2^23 rounds to even; larger magnitudes are clamped first by the callers' bounds or are
// integers.
inline F round_even(F v) {
  const F magic = set(12582912.0f);
  const F rounded = (v + magic) - magic;
  return absolute(v) < set(4194304.0f) ? rounded : v;
}
inline F floor_of(F v) { return F{std::floor(v[0]), std::floor(v[1]), std::floor(v[2]), std::floor(v[3])}; }
inline F choose(I chooser, F a, F b) { return (chooser & 1) != 0 ? b : a; }
inline F where_less(F a, F b, F yes, F no) { return a < b ? yes : no; }
inline float sum(F v) { return (v[0] + v[2]) + (v[1] + v[3]); }
inline float largest(F v) {
  const float a = v[0] > v[1] ? v[0] : v[1];
  const float b = v[2] > v[3] ? v[2] : v[3];
  return a > b ? a : b;
}
inline int32_t largest_int(I v) {
  const int32_t a = v[0] > v[1] ? v[0] : v[1];
  const int32_t b = v[2] > v[3] ? v[2] : v[3];
  return a > b ? a : b;
}

#endif

// As the number of lanes that matter: all of them, known when this is compiled.
using All = std::integral_constant<int64_t, kWidth>;
inline F load_some(const float* p, All) { return load(p); }
inline void store_some(float* p, All, F v) { store(p, v); }

}  // namespace lanes
}  // namespace
