#include "engine.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace outlay {
namespace {

constexpr int64_t kRowsTogether = 12;  // a multiple of the rows that most kernels compute at once
constexpr int64_t kRowsToSplit = 48;   // for each thread: reading all weights in each is then little beside the products

float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7fff;
    uint32_t bits = magnitude << 13;
    if (magnitude >= 0x7c00) bits |= 0x7f800000;  // infinite or NaN
    float value;
    std::memcpy(&value, &bits, sizeof value);
    if (magnitude < 0x7c00) value *= 0x1p112f;  // the exponents' biases differ by 112; exact, for subnormals too
    std::memcpy(&bits, &value, sizeof bits);
    bits |= sign;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace

Scratch::~Scratch() { std::free(data_); }

void* Scratch::reserve(size_t bytes) {
    if (bytes > size_) {
        std::free(data_);
        size_ = (bytes + bytes / 4 + 127) / 64 * 64;
        data_ = std::aligned_alloc(64, size_);
        if (!data_) {
            size_ = 0;
            throw std::bad_alloc();
        }
    }
    return data_;
}

uint8_t* thread_buffer(ThreadBuffer purpose, size_t bytes) {
    static thread_local Scratch memory[3];
    return memory[int(purpose)].get<uint8_t>(int64_t(bytes));
}

void dequantize_row(const OutlayTable& table, int64_t row, float* out) {
    const int64_t groups = table.k / kGroup;
    for (int64_t at = row * groups; at < (row + 1) * groups; ++at, out += kGroup) {
        const uint8_t* from = table.q + at * kGroup;
        const float scale = half_to_float(table.scales[at]), minimum = table.mins ? half_to_float(table.mins[at]) : 0.0f;
        for (int i = 0; i < kGroup; ++i)
            out[i] = table.mins ? float(from[i]) * scale + minimum : float(int8_t(from[i])) * scale;
    }
}

Activations quantize_rows(const OutlayStack& layer, const float* x, int64_t rows, Scratch& memory) {
    if (!is_quantized(layer)) return {x, nullptr};
    const Kernels& kernels = *active_kernels();
    const int64_t groups = layer.k / kGroup;
    QuantizedGroup* q = memory.get<QuantizedGroup>(rows * groups);
    for_each_row(rows, [&](int64_t row) { kernels.quantize(x + row * layer.k, layer.k, q + row * groups); });
    return {x, q};
}

void run_tiles(const Kernels& kernels, const OutlayLinear& part, const Activations& in, int64_t row_begin, int64_t row_end,
               int tile_begin, int tile_end, const LinearOutput& to) {
    OutlayLinear plain = {nullptr, plain_format(part.format), 0, part.k, 0, nullptr};
    if (plain.format == part.format) return kernels.linear(part, in, row_begin, row_end, tile_begin, tile_end, to);
    if (!is_quantized(plain))
        return kernels.linear_of_unpacked(kernels.unpack, part, in, row_begin, row_end, tile_begin, tile_end, to);
    uint8_t* unpacked = thread_buffer(ThreadBuffer::kPlainTile, tile_bytes(plain));  // stays in the first-level cache
    plain.weights = unpacked;
    for (int tile = tile_begin; tile < tile_end; ++tile) {
        const int channel = tile * kTile;
        kernels.unpack(part, tile, 0, part.k / kGroup, unpacked);
        plain.m = std::min(channel + kTile, part.m) - channel;
        LinearOutput there = to;
        there.out += channel;
        if (there.bias) there.bias += channel;
        kernels.linear(plain, in, row_begin, row_end, 0, 1, there);
    }
}

namespace {

// The products of one part of a layer with all rows, cut into items of work.
class PartProducts {
  public:
    PartProducts(const OutlayLinear& part, int first_channel, const Activations& in, int64_t rows, int threads,
                 const LinearOutput& to)
        : part_(part), in_(in), to_(to), rows_(rows), tiles_(tiles_of(part)) {
        to_.out += first_channel;
        if (to_.bias) to_.bias += first_channel;

        // Many rows are split among the threads, so that a core reads again in the next step what it has written.
        const int64_t even = (rows + threads - 1) / threads;
        panel_ = even < kRowsToSplit ? rows : (even + kRowsTogether - 1) / kRowsTogether * kRowsTogether;

        // A chunk is a few microseconds of work: long against claiming it, short against waiting for the last one.
        const OutlayLinear plain = {nullptr, plain_format(part.format), part.m, part.k, 0, nullptr};
        const int64_t work = int64_t(tile_bytes(plain)) * (1 + panel_ / 4);
        chunk_ = int(std::clamp<int64_t>(48 * 1024 / std::max<int64_t>(work, 1), 1, tiles_));
        if (!is_quantized(part)) chunk_ = (chunk_ + kTilesTogether - 1) / kTilesTogether * kTilesTogether;
        chunks_ = (tiles_ + chunk_ - 1) / chunk_;
    }

    int64_t items() const { return (rows_ + panel_ - 1) / panel_ * chunks_; }

    void run(int64_t item) const {
        const int64_t row = item / chunks_ * panel_;
        const int first = int(item % chunks_) * chunk_;
        const int end = std::min(first + chunk_, tiles_);
        run_tiles(*active_kernels(), part_, in_, row, std::min(row + panel_, rows_), first, end, to_);
    }

  private:
    const OutlayLinear& part_;
    const Activations& in_;
    LinearOutput to_;
    int64_t rows_, panel_, chunks_;
    int tiles_, chunk_;
};

}  // namespace

void run_linear(const OutlayStack& layer, const Activations& in, int64_t rows, const LinearOutput& to) {
    Pool& pool = Pool::get();
    std::vector<PartProducts> parts;
    parts.reserve(layer.n_parts);
    int64_t items = 0;
    for (int i = 0, channel = 0; i < layer.n_parts; channel += layer.parts[i++].m) {
        parts.emplace_back(layer.parts[i], channel, in, rows, pool.threads(), to);
        items += parts.back().items();
    }
    // One run for all parts, because every run ends with a wait.
    pool.run(items, [&](int64_t item) {
        const PartProducts* part = parts.data();
        for (; item >= part->items(); ++part) item -= part->items();
        part->run(item);
    });
}

void RowSpans::build(const OutlayAttentionPlan& plan, int64_t n) {
    const auto row_at = [](const OutlayAttentionSpan& span, int64_t i) { return span.rows ? span.rows[i] : i; };
    row_start.assign(n + 1, 0);
    max_keys.assign(n, 0);
    for (int64_t s = 0; s < plan.n_spans; ++s) {
        const OutlayAttentionSpan& span = plan.spans[s];
        for (int64_t i = 0; i < span.n_rows; ++i) {
            ++row_start[row_at(span, i) + 1];
            max_keys[row_at(span, i)] += span.length;
        }
    }
    for (int64_t row = 0; row < n; ++row) row_start[row + 1] += row_start[row];
    span_of.resize(row_start[n]);
    place_in_span.resize(row_start[n]);
    std::vector<int64_t> next(row_start.begin(), row_start.end() - 1);
    for (int64_t s = 0; s < plan.n_spans; ++s) {
        for (int64_t i = 0; i < plan.spans[s].n_rows; ++i) {
            const int64_t at = next[row_at(plan.spans[s], i)]++;
            span_of[at] = int32_t(s);
            place_in_span[at] = int32_t(i);
        }
    }
}

namespace {

constexpr int64_t kScoreFloats = 1 << 18;  // of an item whose rows share keys: they should stay in the second-level cache

// The most rows that share a span which is long enough to be worth widening and transposing once for them.
int64_t rows_sharing(const OutlayAttentionPlan& plan) {
    int64_t most = 0;
    for (int64_t s = 0; s < plan.n_spans; ++s)
        if (plan.spans[s].length >= kKeyTile) most = std::max(most, plan.spans[s].n_rows);
    return most;
}

// How attention is cut into items, and items into lanes: a lane's items run on one thread and share its scratch memory.
struct AttentionCut {
    int heads;             // query heads of an item
    int64_t head_groups;   // items of a block of rows
    int64_t rows;          // of an item
    int64_t items, lanes;
    int64_t score_stride;
    int64_t buffer;        // floats of a lane that receive the keys of a bfloat16 or int8 cache
    int64_t columns;       // floats of a lane that receive transposed keys
    int64_t lane_floats;

    AttentionCut(const AttentionCall& call, int64_t n, int64_t max_keys, int64_t sharing, int threads) {
        const int group = call.n_heads / call.n_kv_heads;
        score_stride = (max_keys + 7) / 8 * 8 + kKeyTile + 16;  // a tile may be scored past a row's last key
        const int64_t fitting = kScoreFloats / (group * score_stride) / kRowBlock * kRowBlock;
        rows = std::clamp<int64_t>(std::min(sharing, fitting), kRowBlock, kMaxRowBlock);
        const int64_t blocks = (n + rows - 1) / rows;
        // Query heads that share keys run together, unless that leaves threads without work.
        heads = blocks * call.n_kv_heads >= 4 * threads || threads == 1 ? group : 1;
        head_groups = call.n_heads / heads;
        items = blocks * head_groups;
        lanes = std::min<int64_t>(items, threads == 1 ? 1 : 8 * threads);
        buffer = call.kv.format == kKVF32 ? 0 : kKeyTile * call.head_dim;
        columns = kKeyTile * call.head_dim;
        lane_floats = std::min(n, rows) * heads * score_stride + buffer + columns;
    }
};

AttentionItem attention_item(const AttentionCall& call, const OutlayAttentionPlan& plan, const RowSpans& spans, int64_t n,
                             const AttentionCut& cut, int64_t index, float* memory) {
    const int head = int(index % cut.head_groups) * cut.heads;
    AttentionItem item = {};
    item.q = call.q + head * call.head_dim;
    item.q_stride = call.q_stride;
    item.kv = kv_of_head(call.kv, head / (call.n_heads / call.n_kv_heads));
    item.spans = plan.spans;
    item.row_start = spans.row_start.data();
    item.span_of = spans.span_of.data();
    item.place_in_span = spans.place_in_span.data();
    item.row_begin = index / cut.head_groups * cut.rows;
    item.row_end = std::min<int64_t>(n, item.row_begin + cut.rows);
    item.head_dim = call.head_dim;
    item.n_heads = cut.heads;
    item.scale = call.scale;
    item.softcap = call.softcap;
    item.floats = memory;
    item.columns = memory + cut.buffer;
    item.scores = item.columns + cut.columns;
    item.score_stride = cut.score_stride;
    item.out = call.out + head * call.head_dim;
    item.out_stride = call.out_stride;
    item.lse = call.lse ? call.lse + head : nullptr;
    item.lse_stride = call.n_heads;
    item.weights = call.weights;
    item.weight_stride = call.weight_stride;
    item.weight_offset = call.weight_offset + head * call.weight_stride;
    return item;
}

}  // namespace

void run_attention(const AttentionCall& call, const OutlayAttentionPlan& plan, const RowSpans& spans, int64_t n,
                   Scratch& scratch) {
    const Kernels& kernels = *active_kernels();
    Pool& pool = Pool::get();
    int64_t max_keys = 0, total_keys = 0;
    for (int64_t keys : spans.max_keys) max_keys = std::max(max_keys, keys), total_keys += keys;

    const AttentionCut cut(call, n, max_keys, rows_sharing(plan), pool.threads());
    float* memory = scratch.get<float>(cut.lanes * cut.lane_floats);
    const auto run_lane = [&](int64_t lane) {
        for (int64_t i = lane * cut.items / cut.lanes; i < (lane + 1) * cut.items / cut.lanes; ++i)
            kernels.attend(attention_item(call, plan, spans, n, cut, i, memory + lane * cut.lane_floats));
    };

    // Sharing work this small costs more than doing it.
    constexpr int64_t kSmall = 1 << 17;
    if (total_keys * call.n_heads * call.head_dim < kSmall) {
        for (int64_t lane = 0; lane < cut.lanes; ++lane) run_lane(lane);
    } else {
        pool.run(cut.lanes, run_lane);
    }
}

}  // namespace outlay
