// One forward of a Llama-like decoder over a few tokens: float32 sums over weights as they are stored.
//
// Weights stay bfloat16, float32, or blocks of 32 as GGUF has them (4 or 8 bits with a float32 scale and offset) and are
// widened in registers, for four output rows at a time; with more than a few tokens once into the first-level cache.
// Written in the compiler's own vectors, so that AVX2, AVX-512 and NEON come from one text; but for widening and adding
// up, which g++ 12 takes apart element by element: there the processors' own instructions are ten times as fast.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __AVX2__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
typedef float F __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef uint16_t H __attribute__((vector_size(2 * W)));
typedef uint8_t B __attribute__((vector_size(W)));
typedef int8_t S __attribute__((vector_size(W)));

enum Format : int32_t { FLOAT32 = 0, BFLOAT16 = 1, Q4_1 = 2, Q8_0 = 3 };

extern "C" {
struct Matrix {
  const void *data;     // row after row
  const float *scales;  // of blocks: scale and offset (Q4_1), or scale (Q8_0)
  const float *bias;    // or null
  int64_t rows, columns;
  int32_t format;
};
struct Layer {
  Matrix query, key, value, out, gate, up, down;
  const float *before, *after;               // weights of the two norms
  const float *query_norm, *key_norm;        // of each head, or null
  float *keys, *values;                      // the cache: (batch, groups, capacity, dim)
};
struct Model {
  int64_t layers, width, heads, groups, dim, inner;
  float epsilon;
  const Layer *layer;
  const float *norm;
  Matrix head;
};
}

static inline F load(const float *p) { F v; memcpy(&v, p, sizeof v); return v; }
static inline void store(float *p, F v) { memcpy(p, &v, sizeof v); }
#if defined(__AVX512F__) || defined(__AVX2__)
#if defined(__AVX512F__)
static inline __m128 quarter(F v) {
  const __m512d d = (__m512d)v;
  const __m256 half = _mm256_add_ps((__m256)_mm512_castpd512_pd256(d), (__m256)_mm512_extractf64x4_pd(d, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
#else
static inline __m128 quarter(F v) {
  return _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
}
#endif
static inline float sum(F v) {
  __m128 q = quarter(v);
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
static inline void two_sums(const F *v, float *to) {
  const __m128 both = _mm_hadd_ps(quarter(v[0]), quarter(v[1]));
  _mm_storel_pi((__m64 *)to, _mm_hadd_ps(both, both));
}
static inline void four_sums(const F *v, float *to) {
  const __m128 one = _mm_hadd_ps(quarter(v[0]), quarter(v[1])), two = _mm_hadd_ps(quarter(v[2]), quarter(v[3]));
  _mm_storeu_ps(to, _mm_hadd_ps(one, two));
}
#else
static inline float sum(F v) {
  float s[W]; memcpy(s, &v, sizeof v);
  for (int half = W / 2; half; half /= 2) for (int i = 0; i < half; i++) s[i] += s[i + half];
  return s[0];
}
static inline void two_sums(const F *v, float *to) { for (int r = 0; r < 2; r++) to[r] = sum(v[r]); }
static inline void four_sums(const F *v, float *to) { for (int r = 0; r < 4; r++) to[r] = sum(v[r]); }
#endif

#if defined(__AVX512F__)
static inline F all(float x) { return (F)_mm512_set1_ps(x); }
static inline F wide_unsigned(__m128i bytes) { return (F)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)); }
static inline F wide_signed(const void *p) {
  return (F)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline F wide_half(const void *p) {
  return (F)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}
static inline void nibbles(const uint8_t *p, F *low) {
  const __m128i b = _mm_loadu_si128((const __m128i *)p), mask = _mm_set1_epi8(15);
  low[0] = wide_unsigned(_mm_and_si128(b, mask));
  low[1] = wide_unsigned(_mm_and_si128(_mm_srli_epi16(b, 4), mask));
}
#elif defined(__AVX2__)
static inline F all(float x) { return (F)_mm256_set1_ps(x); }
static inline F wide_unsigned(__m128i bytes) { return (F)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)); }
static inline F wide_signed(const void *p) {
  return (F)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
static inline F wide_half(const void *p) {
  return (F)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
}
static inline void nibbles(const uint8_t *p, F *to) {
  const __m128i b = _mm_loadu_si128((const __m128i *)p), mask = _mm_set1_epi8(15);
  const __m128i low = _mm_and_si128(b, mask), high = _mm_and_si128(_mm_srli_epi16(b, 4), mask);
  to[0] = wide_unsigned(low), to[1] = wide_unsigned(_mm_srli_si128(low, 8));
  to[2] = wide_unsigned(high), to[3] = wide_unsigned(_mm_srli_si128(high, 8));
}
#else
static inline F all(float x) { F v; for (int i = 0; i < W; i++) v[i] = x; return v; }
static inline F wide_signed(const void *p) {
  S s; memcpy(&s, p, sizeof s);
  return __builtin_convertvector(__builtin_convertvector(s, I), F);
}
static inline F wide_half(const void *p) {
  H h; memcpy(&h, p, sizeof h);
  U u = __builtin_convertvector(h, U) << 16;
  F f; memcpy(&f, &u, sizeof f); return f;
}
static inline void nibbles(const uint8_t *p, F *to) {
  for (int part = 0; part < 16 / W; part++) {
    B b; memcpy(&b, p + part * W, sizeof b);
    B low = b & 15, high = b >> 4;
    to[part] = __builtin_convertvector(__builtin_convertvector(low, I), F);
    to[part + 16 / W] = __builtin_convertvector(__builtin_convertvector(high, I), F);
  }
}
#endif

// Weights k .. k + 32 of a row, with k a multiple of 32 (of 16, and 16 of them, where nothing is in blocks).
constexpr int PARTS = 32 / W;
template <int FORMAT> constexpr int parts() { return FORMAT == FLOAT32 || FORMAT == BFLOAT16 ? 16 / W : PARTS; }
template <int FORMAT> static inline void weights(const Matrix &m, int64_t row, int64_t k, F *w) {
  const int64_t at = row * m.columns + k, block = at / 32;
  if (FORMAT == FLOAT32) {
    for (int i = 0; i < parts<FORMAT>(); i++) w[i] = load((const float *)m.data + at + i * W);
  } else if (FORMAT == BFLOAT16) {
    for (int i = 0; i < parts<FORMAT>(); i++) w[i] = wide_half((const uint16_t *)m.data + at + i * W);
  } else if (FORMAT == Q4_1) {  // byte i holds weight i below and weight i + 16 above
    nibbles((const uint8_t *)m.data + block * 16, w);
    const F scale = all(m.scales[2 * block]), offset = all(m.scales[2 * block + 1]);
    for (int i = 0; i < PARTS; i++) w[i] = w[i] * scale + offset;
  } else {
    const F scale = all(m.scales[block]);
    for (int i = 0; i < PARTS; i++) w[i] = wide_signed((const int8_t *)m.data + block * 32 + i * W) * scale;
  }
}

// R rows against N tokens; `wide` holds the rows as float32 if they were widened before.
template <int FORMAT, int R, int N>
static inline void tile(const Matrix &m, int64_t row, const float *x, float *y, int64_t stride) {
  F acc[N][R] = {};
  if (FORMAT == FLOAT32) {  // all rows beside each other: every x is read once for them
    for (int64_t k = 0; k < m.columns; k += W) {
      F w[R];
      for (int r = 0; r < R; r++) w[r] = load((const float *)m.data + (row + r) * m.columns + k);
      for (int n = 0; n < N; n++) {
        F a = load(x + n * m.columns + k);
        for (int r = 0; r < R; r++) acc[n][r] += w[r] * a;
      }
    }
  } else {
    constexpr int P = parts<FORMAT>();
    for (int64_t k = 0; k < m.columns; k += P * W)
      for (int r = 0; r < R; r++) {
        F w[P];
        weights<FORMAT>(m, row + r, k, w);
        for (int n = 0; n < N; n++)
          for (int i = 0; i < P; i++) acc[n][r] += w[i] * load(x + n * m.columns + k + i * W);
      }
  }
  for (int n = 0; n < N; n++) {
    float *to = y + n * stride + row;
    if (R == 4) four_sums(acc[n], to);
    else if (R == 2) two_sums(acc[n], to);
    else for (int r = 0; r < R; r++) to[r] = sum(acc[n][r]);
    if (m.bias) for (int r = 0; r < R; r++) to[r] += m.bias[row + r];
  }
}

constexpr int MOST = W == 16 ? 6 : 3;  // tokens whose sums fit into the registers beside four rows; twice beside two

template <int FORMAT, int R>
static inline void tile_of(const Matrix &m, int64_t row, const float *x, float *y, int64_t stride, int tokens) {
  switch (tokens) {
    case 1: return tile<FORMAT, R, 1>(m, row, x, y, stride);
    case 2: return tile<FORMAT, R, 2>(m, row, x, y, stride);
    case 3: return tile<FORMAT, R, 3>(m, row, x, y, stride);
    case 4: return tile<FORMAT, R, 4>(m, row, x, y, stride);
    case 5: return tile<FORMAT, R, 5>(m, row, x, y, stride);
    default: return tile<FORMAT, R, 6>(m, row, x, y, stride);
  }
}

template <int FORMAT, int R>
static void rows(const Matrix &m, int64_t row, const float *x, float *y, int64_t stride, int tokens, float *wide) {
  if (tokens <= MOST || FORMAT == FLOAT32) {
    const int groups = (tokens + MOST - 1) / MOST;  // nearly equal: a tile of one token costs half of one of six
    for (int g = 0; g < groups; g++) {
      const int64_t n = g * tokens / groups;
      tile_of<FORMAT, R>(m, row, x + n * m.columns, y + n * stride, stride, (g + 1) * tokens / groups - n);
    }
    return;
  }
  if (W < 16 && R == 4 && tokens <= 2 * MOST) {
    tile_of<FORMAT, 2>(m, row, x, y, stride, tokens);
    return tile_of<FORMAT, 2>(m, row + 2, x, y, stride, tokens);
  }
  for (int r = 0; r < R; r++)
    for (int64_t k = 0; k < m.columns; k += parts<FORMAT>() * W) {
      F w[parts<FORMAT>()];
      weights<FORMAT>(m, row + r, k, w);
      for (int i = 0; i < parts<FORMAT>(); i++) store(wide + r * m.columns + k + i * W, w[i]);
    }
  Matrix w{wide, nullptr, m.bias ? m.bias + row : nullptr, R, m.columns, FLOAT32};
  rows<FLOAT32, R>(w, 0, x, y + row, stride, tokens, nullptr);
}

template <int FORMAT> static void product(const Matrix &m, const float *x, float *y, int tokens, float *wide) {
  const int64_t blocks = m.rows / 4, rest = m.rows % 4;
#pragma omp for schedule(static) nowait
  for (int64_t b = 0; b < blocks; b++) rows<FORMAT, 4>(m, 4 * b, x, y, m.rows, tokens, wide);
  if (rest) {
#pragma omp for schedule(static) nowait
    for (int64_t row = 4 * blocks; row < m.rows; row++) rows<FORMAT, 1>(m, row, x, y, m.rows, tokens, wide);
  }
}

// Within a parallel region: y (tokens, rows) = x (tokens, columns) times the matrix; threads do not wait for each other.
static void multiply(const Matrix &m, const float *x, float *y, int tokens, float *wide) {
  switch (m.format) {
    case FLOAT32: return product<FLOAT32>(m, x, y, tokens, wide);
    case BFLOAT16: return product<BFLOAT16>(m, x, y, tokens, wide);
    case Q4_1: return product<Q4_1>(m, x, y, tokens, wide);
    default: return product<Q8_0>(m, x, y, tokens, wide);
  }
}

static inline F exponential(F x) {  // Cephes' polynomial, 2 units in the last place
  x = x < -87.f ? all(-87.f) : x;
  x = x > 88.f ? all(88.f) : x;
  F scaled = x * 1.44269504f + (x < 0.f ? all(-0.5f) : all(0.5f));
  I whole = __builtin_convertvector(scaled, I);
  F n = __builtin_convertvector(whole, F);
  F r = x - n * 0.693359375f + n * 2.12194440e-4f;
  F p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f; p = p * r + 8.3334519073e-3f; p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f; p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  I bits = (whole + 127) << 23;
  F power; memcpy(&power, &bits, sizeof power);
  return p * power;
}

static void normalise(const float *x, const float *weight, float *y, int64_t size, float epsilon) {
  F squares = {};
  for (int64_t i = 0; i < size; i += W) { F v = load(x + i); squares += v * v; }
  F scale = all(1.f / std::sqrt(sum(squares) / size + epsilon));
  for (int64_t i = 0; i < size; i += W) store(y + i, load(x + i) * scale * load(weight + i));
}

// Norm of the head if there is one, then the rotation: the second half of a head turns against its first.
static void turn(float *head, const float *norm, float epsilon, const float *cosine, const float *sine, int64_t dim) {
  if (norm) normalise(head, norm, head, dim, epsilon);
  for (int64_t i = 0, half = dim / 2; i < half; i++) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cosine[i] - b * sine[i];
    head[i + half] = b * cosine[i + half] + a * sine[i + half];
  }
}

// One head of one token over the columns it sees.
static void attend(const float *query, const float *keys, const float *values, const uint8_t *seen, int64_t columns,
                   int64_t dim, float *scores, float *out) {
  const float scale = 1.f / std::sqrt((float)dim);
  float highest = -INFINITY;
  for (int64_t c = 0; c < columns; c++) {
    if (!seen[c]) { scores[c] = -INFINITY; continue; }
    F s = {};
    for (int64_t i = 0; i < dim; i += W) s += load(query + i) * load(keys + c * dim + i);
    scores[c] = sum(s) * scale;
    highest = scores[c] > highest ? scores[c] : highest;
  }
  for (int64_t c = columns; c % W; c++) scores[c] = -INFINITY;
  F total = {};
  for (int64_t c = 0; c < columns; c += W) {
    F s = load(scores + c);
    F e = s == -INFINITY ? all(0.f) : exponential(s - highest);
    store(scores + c, e);
    total += e;
  }
  const float share = 1.f / sum(total);
  for (int64_t i = 0; i < dim; i += W) store(out + i, all(0.f));
  for (int64_t c = 0; c < columns; c++) {
    if (scores[c] == 0.f) continue;
    F s = all(scores[c] * share);
    for (int64_t i = 0; i < dim; i += W) store(out + i, load(out + i) + s * load(values + c * dim + i));
  }
}

extern "C" int lanes() { return W; }

extern "C" void multiply_once(const Matrix *m, const float *x, float *y, int tokens, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> wide(4 * m->columns);
    multiply(*m, x, y, tokens, wide.data());
  }
}

// Read batch x tokens new tokens: `x` (batch, tokens, width) are their embeddings and is overwritten, cosine and sine
// (batch, tokens, dim), seen (batch, tokens, columns) which columns each sees, the last `tokens` ones being the new.
// logits (batch, kept, vocabulary) are those of the last `kept` tokens of each sequence.
extern "C" void step(const Model *model, int64_t batch, int64_t tokens, int64_t capacity, int64_t columns, float *x,
                     const float *cosine, const float *sine, const uint8_t *seen, float *logits, int64_t kept,
                     int threads) {
  const Model &m = *model;
  const int64_t all_tokens = batch * tokens, wide_q = m.heads * m.dim, wide_k = m.groups * m.dim;
  const int64_t start = columns - tokens, longest = m.inner > m.width ? m.inner : m.width;
  std::vector<float> normed(all_tokens * m.width), query(all_tokens * wide_q), key(all_tokens * wide_k),
      value(all_tokens * wide_k), mixed(all_tokens * wide_q), added(all_tokens * m.width),
      gate(all_tokens * m.inner), up(all_tokens * m.inner), last(batch * kept * m.width);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> wide(4 * (longest > wide_q ? longest : wide_q)), scores(columns + W);
    for (int64_t l = 0; l < m.layers; l++) {
      const Layer &layer = m.layer[l];
#pragma omp for schedule(static)
      for (int64_t t = 0; t < all_tokens; t++)
        normalise(&x[t * m.width], layer.before, &normed[t * m.width], m.width, m.epsilon);
      multiply(layer.query, normed.data(), query.data(), all_tokens, wide.data());
      multiply(layer.key, normed.data(), key.data(), all_tokens, wide.data());
      multiply(layer.value, normed.data(), value.data(), all_tokens, wide.data());
#pragma omp barrier
#pragma omp for schedule(static)
      for (int64_t t = 0; t < all_tokens; t++) {
        const float *c = cosine + t * m.dim, *s = sine + t * m.dim;
        for (int64_t h = 0; h < m.heads; h++) turn(&query[t * wide_q + h * m.dim], layer.query_norm, m.epsilon, c, s, m.dim);
        for (int64_t g = 0; g < m.groups; g++) {
          turn(&key[t * wide_k + g * m.dim], layer.key_norm, m.epsilon, c, s, m.dim);
          const int64_t at = (((t / tokens) * m.groups + g) * capacity + start + t % tokens) * m.dim;
          memcpy(layer.keys + at, &key[t * wide_k + g * m.dim], m.dim * sizeof(float));
          memcpy(layer.values + at, &value[t * wide_k + g * m.dim], m.dim * sizeof(float));
        }
      }
#pragma omp for schedule(dynamic) collapse(2)
      for (int64_t h = 0; h < m.heads; h++)
        for (int64_t t = 0; t < all_tokens; t++) {
          const int64_t group = h / (m.heads / m.groups), at = ((t / tokens) * m.groups + group) * capacity * m.dim;
          attend(&query[t * wide_q + h * m.dim], layer.keys + at, layer.values + at, seen + t * columns, columns, m.dim,
                 scores.data(), &mixed[t * wide_q + h * m.dim]);
        }
      multiply(layer.out, mixed.data(), added.data(), all_tokens, wide.data());
#pragma omp barrier
#pragma omp for schedule(static)
      for (int64_t t = 0; t < all_tokens; t++) {
        for (int64_t i = 0; i < m.width; i++) x[t * m.width + i] += added[t * m.width + i];
        normalise(&x[t * m.width], layer.after, &normed[t * m.width], m.width, m.epsilon);
      }
      multiply(layer.gate, normed.data(), gate.data(), all_tokens, wide.data());
      multiply(layer.up, normed.data(), up.data(), all_tokens, wide.data());
#pragma omp barrier
#pragma omp for schedule(static)
      for (int64_t i = 0; i < all_tokens * m.inner / W; i++) {
        F g = load(&gate[i * W]);
        store(&gate[i * W], g / (1.f + exponential(-g)) * load(&up[i * W]));
      }
      multiply(layer.down, gate.data(), added.data(), all_tokens, wide.data());
#pragma omp barrier
#pragma omp for schedule(static)
      for (int64_t i = 0; i < all_tokens * m.width; i++) x[i] += added[i];
    }
#pragma omp for schedule(static)
    for (int64_t r = 0; r < batch * kept; r++)
      normalise(&x[((r / kept) * tokens + tokens - kept + r % kept) * m.width], m.norm, &last[r * m.width], m.width, m.epsilon);
    multiply(m.head, last.data(), logits, batch * kept, wide.data());
  }
}
