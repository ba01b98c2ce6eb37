// Decoding steps that read few tokens: choose them by their labels, attend to the rows chosen.
// One call serves one layer; work is shared over (sequence, head). Sums are float32. See kernel.py for the shapes.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

struct bfloat16 {
    uint16_t bits;
};

inline float widen(float x) { return x; }
inline float widen(bfloat16 x) {
    uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}

inline void narrow(float x, float* to) { *to = x; }
inline void narrow(float x, bfloat16* to) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    to->bits = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Eight numbers at a time, in the vector types that GCC and Clang share: left alone, compilers differ by a factor of 3.
typedef float lanes __attribute__((vector_size(32)));
typedef float half_lanes __attribute__((vector_size(16)));
typedef uint32_t wide_bits __attribute__((vector_size(32)));
typedef uint16_t short_bits __attribute__((vector_size(16)));

inline lanes load(const float* from) {
    lanes loaded;
    std::memcpy(&loaded, from, sizeof loaded);
    return loaded;
}
inline lanes load(const bfloat16* from) {
    short_bits bits;
    std::memcpy(&bits, from, sizeof bits);
    wide_bits wide = __builtin_convertvector(bits, wide_bits) << 16;
    lanes loaded;
    std::memcpy(&loaded, &wide, sizeof loaded);
    return loaded;
}

inline float sum_of(lanes x) {
    half_lanes low, high;
    std::memcpy(&low, &x, 16);
    std::memcpy(&high, reinterpret_cast<const char*>(&x) + 16, 16);
    low += high;
    return (low[0] + low[2]) + (low[1] + low[3]);
}

// Dot product of `width` numbers; a `Width` known beforehand is a multiple of 8 and leaves no loop.
template <int Width, typename T>
inline float dot(const float* query, const T* row, int width) {
    if constexpr (Width > 0) {
        lanes sum = load(query) * load(row);
        for (int c = 8; c < Width; c += 8) sum += load(query + c) * load(row + c);
        return sum_of(sum);
    }
    float sum = 0;
    for (int c = 0; c < width; ++c) sum += query[c] * widen(row[c]);
    return sum;
}

// Runs a statement with `Width` known for the widths that heads and labels usually have.
#define MINTAGE_BY_WIDTH(width, ...)                     \
    switch (width) {                                     \
        case 8: { constexpr int Width = 8; __VA_ARGS__; break; }    \
        case 16: { constexpr int Width = 16; __VA_ARGS__; break; }  \
        case 32: { constexpr int Width = 32; __VA_ARGS__; break; }  \
        case 64: { constexpr int Width = 64; __VA_ARGS__; break; }  \
        case 128: { constexpr int Width = 128; __VA_ARGS__; break; } \
        default: { constexpr int Width = 0; __VA_ARGS__; }          \
    }

// Whole numbers in the order of the floats.
inline uint32_t ordered(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

// Indices of the `k` highest of `n` scores, ascending; of equal scores the lower index.
void best(const float* score, int64_t n, int64_t k, int64_t* out) {
    constexpr int kShift = 21;  // sign, exponent and two bits of the fraction: few scores share the last bin taken
    uint32_t counts[1 << (32 - kShift)] = {};
    for (int64_t j = 0; j < n; ++j) ++counts[ordered(score[j]) >> kShift];
    int64_t above = 0;
    uint32_t bin = (1u << (32 - kShift)) - 1;
    while (above + counts[bin] < k) above += counts[bin--];
    std::vector<uint64_t> edge;
    edge.reserve(counts[bin]);
    for (int64_t j = 0; j < n; ++j) {
        uint32_t key = ordered(score[j]);
        if (key >> kShift == bin) edge.push_back(static_cast<uint64_t>(key) << 32 | static_cast<uint32_t>(~j));
    }
    uint64_t least = 0;
    if (k > above) {
        auto last = edge.begin() + (k - above - 1);
        std::nth_element(edge.begin(), last, edge.end(), std::greater<>());
        least = *last;
    }
    for (int64_t j = 0, place = 0; place < k; ++j) {
        uint64_t key = static_cast<uint64_t>(ordered(score[j])) << 32 | static_cast<uint32_t>(~j);
        if (key >= least) out[place++] = j;
    }
}

// Whole lanes that hold `n` numbers: scores are kept in whole lanes, the rest of the last never chosen.
inline int64_t in_lanes(int64_t n) { return (n + 7) / 8 * 8; }

// e^x for x <= 0, to three units in the last place; 0 below -87, where floats end.
inline lanes exp_of(lanes x) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to a whole number
    const auto within = x > -87.0f;
    const lanes shifted = x * 1.44269504f + kRound, power = shifted - kRound;
    const lanes rest = x - power * 0.693359375f + power * 2.12194440e-4f;  // ln 2 in two parts
    lanes sum = rest * (1.0f / 720) + 1.0f / 120;
    for (float factorial : {1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) sum = sum * rest + factorial;
    wide_bits bits, scale;
    std::memcpy(&bits, &sum, sizeof bits);
    std::memcpy(&scale, &shifted, sizeof scale);
    bits = (bits + (scale << 23)) & reinterpret_cast<wide_bits>(within);
    std::memcpy(&sum, &bits, sizeof sum);
    return sum;
}

// Softmax of `n` scores, a multiple of 8; none above kNever leaves all zero.
void softmax(float* score, int64_t n) {
    lanes most = load(score), sum = {};
    for (int64_t j = 8; j < n; j += 8) {
        const lanes next = load(score + j);
        most = next > most ? next : most;
    }
    float highest = most[0];
    for (int c = 1; c < 8; ++c) highest = std::max(highest, most[c]);
    if (highest == kNever) return std::fill(score, score + n, 0.0f);
    for (int64_t j = 0; j < n; j += 8) {
        const lanes weight = exp_of(load(score + j) - highest);
        sum += weight;
        std::memcpy(score + j, &weight, sizeof weight);
    }
    const float share = 1 / sum_of(sum);
    for (int64_t j = 0; j < n; j += 8) {
        const lanes weight = load(score + j) * share;
        std::memcpy(score + j, &weight, sizeof weight);
    }
}

// Weighted sum of the rows at `index`.
template <int Width, typename T>
void weigh(const float* weight, const int64_t* index, int64_t k, const T* values, int dim, float* sum) {
    const int n = Width ? Width : dim;
    if constexpr (Width > 0) {
        lanes local[Width / 8] = {};  // stays in registers
        for (int64_t j = 0; j < k; ++j)
            for (int c = 0; c < Width; c += 8) local[c / 8] += weight[j] * load(values + index[j] * n + c);
        std::memcpy(sum, local, sizeof local);
    } else {
        for (int64_t j = 0; j < k; ++j)
            for (int c = 0; c < n; ++c) sum[c] += weight[j] * widen(values[index[j] * n + c]);
    }
}

template <typename T>
void choose(const T* query, const T* label, const int64_t* channels, const uint8_t* visible, int64_t* out,
            int64_t batch, int64_t groups, int64_t share, int64_t sets, int64_t entries, int64_t dim, int64_t width,
            int64_t k, int64_t batch_stride, int64_t group_stride, float scale, int threads) {
    const int64_t rows = batch * groups * sets, voters = share / sets;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t set = row % sets, group = row / sets % groups, b = row / sets / groups;
        const T* held = label + b * batch_stride + group * group_stride + set * width;
        const int64_t* own = channels + (group * sets + set) * width;
        const int64_t padded = in_lanes(entries);
        std::vector<float> score(padded, kNever), ballots(voters > 1 ? padded : 0), projected(width);
        for (int64_t voter = 0; voter < voters; ++voter) {
            const T* full = query + ((b * groups + group) * share + set * voters + voter) * dim;
            for (int64_t c = 0; c < width; ++c) projected[c] = widen(full[own[c]]) * scale;
            MINTAGE_BY_WIDTH(width, for (int64_t j = 0; j < entries; ++j)
                score[j] = dot<Width>(projected.data(), held + j * sets * width, static_cast<int>(width)))
            if (visible)
                for (int64_t j = 0; j < entries; ++j)
                    if (!visible[b * entries + j]) score[j] = kNever;
            if (voters > 1) {
                std::fill(score.begin() + entries, score.end(), kNever);
                softmax(score.data(), padded);
                for (int64_t j = 0; j < padded; j += 8) {
                    const lanes sum = load(&ballots[j]) + load(&score[j]);
                    std::memcpy(&ballots[j], &sum, sizeof sum);
                }
            }
        }
        best(voters > 1 ? ballots.data() : score.data(), entries, k, out + row * k);
    }
}

template <typename T>
void read(const T* query, const T* key, const T* value, const int64_t* chosen, const uint8_t* visible, T* out,
          int64_t batch, int64_t groups, int64_t share, int64_t sets, int64_t entries, int64_t dim, int64_t k,
          int64_t key_batch, int64_t key_group, int64_t value_batch, int64_t value_group, float scaling, int threads) {
    const int64_t heads = batch * groups * share;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t head = 0; head < heads; ++head) {
        const int64_t set = head % share / (share / sets), group = head / share % groups, b = head / share / groups;
        const int64_t* index = chosen + ((b * groups + group) * sets + set) * k;
        const T* keys = key + b * key_batch + group * key_group;
        const T* values = value + b * value_batch + group * value_group;
        const int64_t padded = in_lanes(k);
        std::vector<float> wide(dim), weight(padded, kNever), sum(dim);
        for (int64_t c = 0; c < dim; ++c) wide[c] = widen(query[head * dim + c]) * scaling;
        MINTAGE_BY_WIDTH(dim, for (int64_t j = 0; j < k; ++j)
            weight[j] = dot<Width>(wide.data(), keys + index[j] * dim, static_cast<int>(dim)))
        if (visible)
            for (int64_t j = 0; j < k; ++j)
                if (!visible[b * entries + index[j]]) weight[j] = kNever;
        softmax(weight.data(), padded);
        MINTAGE_BY_WIDTH(dim, weigh<Width>(weight.data(), index, k, values, static_cast<int>(dim), sum.data()))
        for (int64_t c = 0; c < dim; ++c) narrow(sum[c], out + head * dim + c);
    }
}

}  // namespace

#define MINTAGE_SERVE(T, SUFFIX)                                                                                     \
    extern "C" void choose_##SUFFIX(const T* query, const T* label, const int64_t* channels, const uint8_t* visible, \
                                    int64_t* out, int64_t batch, int64_t groups, int64_t share, int64_t sets,        \
                                    int64_t entries, int64_t dim, int64_t width, int64_t k, int64_t batch_stride,    \
                                    int64_t group_stride, float scale, int threads) {                                \
        choose<T>(query, label, channels, visible, out, batch, groups, share, sets, entries, dim, width, k,          \
                  batch_stride, group_stride, scale, threads);                                                       \
    }                                                                                                                \
    extern "C" void read_##SUFFIX(const T* query, const T* key, const T* value, const int64_t* chosen,               \
                                  const uint8_t* visible, T* out, int64_t batch, int64_t groups, int64_t share,      \
                                  int64_t sets, int64_t entries, int64_t dim, int64_t k, int64_t key_batch,          \
                                  int64_t key_group, int64_t value_batch, int64_t value_group, float scaling,        \
                                  int threads) {                                                                     \
        read<T>(query, key, value, chosen, visible, out, batch, groups, share, sets, entries, dim, k, key_batch,     \
                key_group, value_batch, value_group, scaling, threads);                                              \
    }

MINTAGE_SERVE(bfloat16, bfloat16)
MINTAGE_SERVE(float, float32)
