#include "engine.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace outlay {
namespace {

constexpr int64_t kRowsTogether = 12;  // a multiple of what most kernels compute at once
constexpr int64_t kRowsToSplit = 48;   // for each thread, so that reading the weights once for each is little beside

float from_half(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7fff;
    uint32_t bits = magnitude << 13;
    if (magnitude >= 0x7c00) bits |= 0x7f800000;  // infinite, or none
    float value;
    std::memcpy(&value, &bits, sizeof value);
    if (magnitude < 0x7c00) value *= 0x1p112f;  // the exponents' biases differ by 112; exact, for the smallest too
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

uint8_t* thread_memory(Use use, size_t bytes) {
    static thread_local Scratch memory[2];
    return memory[int(use)].get<uint8_t>(int64_t(bytes));
}

void widen_row(const OutlayTable& table, int64_t row, float* out) {
    const int64_t groups = table.k / kGroup;
    for (int64_t at = row * groups; at < (row + 1) * groups; ++at, out += kGroup) {
        const uint8_t* from = table.q + at * kGroup;
        const float scale = from_half(table.scales[at]), least = table.mins ? from_half(table.mins[at]) : 0.0f;
        for (int i = 0; i < kGroup; ++i)
            out[i] = table.mins ? float(from[i]) * scale + least : float(int8_t(from[i])) * scale;
    }
}

Activations quantize_rows(const OutlayLinear& layer, const float* x, int64_t rows, Scratch& memory) {
    if (!is_quantized(layer)) return {x, nullptr};
    const Kernels& kernels = *active_kernels();
    const int64_t groups = layer.k / kGroup;
    QuantizedGroup* q = memory.get<QuantizedGroup>(rows * groups);
    each_row(rows, [&](int64_t row) { kernels.quantize(x + row * layer.k, layer.k, q + row * groups); });
    return {x, q};
}

void run_linear(const OutlayLinear& layer, const Activations& in, int64_t rows, const Output& out) {
    const Kernels& kernels = *active_kernels();
    const int tiles = tiles_of(layer);
    // Many rows are split among the threads: what a core has written, it reads again in the next step.
    Pool& pool = Pool::get();
    const int64_t even = (rows + pool.threads() - 1) / pool.threads();
    const int64_t panel = even < kRowsToSplit ? rows : (even + kRowsTogether - 1) / kRowsTogether * kRowsTogether;
    // A chunk is a few microseconds of work: long against taking it, short against waiting for the last one.
    const int64_t work = int64_t(tile_bytes(layer)) * (1 + panel / 4);
    int chunk = int(std::clamp<int64_t>(48 * 1024 / std::max<int64_t>(work, 1), 1, tiles));
    if (!is_quantized(layer)) chunk = (chunk + kTilesTogether - 1) / kTilesTogether * kTilesTogether;
    const int64_t chunks = (tiles + chunk - 1) / chunk, panels = (rows + panel - 1) / panel;
    pool.run(panels * chunks, [&](int64_t i) {
        const int64_t row = i / chunks * panel;
        const int first = int(i % chunks) * chunk;
        kernels.linear(layer, in, row, std::min(row + panel, rows), first, std::min(first + chunk, tiles), out);
    });
}

void RowSpans::build(const OutlayPlan& plan, int64_t n) {
    start.assign(n + 1, 0);
    keys.assign(n, 0);
    for (int64_t p = 0; p < plan.n_pieces; ++p) {
        const OutlayPiece& piece = plan.pieces[p];
        for (int64_t i = 0; i < piece.n_rows; ++i) {
            const int64_t row = piece.rows ? piece.rows[i] : i;
            ++start[row + 1];
            keys[row] += piece.length;
        }
    }
    for (int64_t row = 0; row < n; ++row) start[row + 1] += start[row];
    piece.resize(start[n]);
    index.resize(start[n]);
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t p = 0; p < plan.n_pieces; ++p) {
        for (int64_t i = 0; i < plan.pieces[p].n_rows; ++i) {
            const int64_t row = plan.pieces[p].rows ? plan.pieces[p].rows[i] : i;
            piece[next[row]] = int32_t(p);
            index[next[row]++] = int32_t(i);
        }
    }
}

void run_attend(const AttendCall& call, const OutlayPlan& plan, const RowSpans& spans, int64_t n, Scratch& scratch) {
    const Kernels& kernels = *active_kernels();
    Pool& pool = Pool::get();
    const int group = call.n_heads / call.n_kv_heads;
    int64_t longest = 0, total = 0;
    for (int64_t keys : spans.keys) longest = std::max(longest, keys), total += keys;
    const int64_t stride = (longest + 7) / 8 * 8 + kKeyTile + 16;  // a tile may be scored past a row's last key
    const int64_t blocks = (n + kRowBlock - 1) / kRowBlock;
    // Heads that share keys are served together, unless that leaves threads without work.
    const int heads = blocks * call.n_kv_heads >= 4 * pool.threads() || pool.threads() == 1 ? group : 1;
    const int64_t items = blocks * (call.n_heads / heads);

    // One score array for each item that may run at the same time. A lane of items runs on one thread.
    const int64_t widened = call.cache.format == kCacheF32 ? 0 : kKeyTile * call.head_dim;
    const int64_t lane_size = int64_t(std::min<int64_t>(n, kRowBlock)) * heads * stride + widened;
    const int64_t lanes = std::min<int64_t>(items, pool.threads() == 1 ? 1 : 8 * pool.threads());
    float* scores = scratch.get<float>(lanes * lane_size);
    const auto run_lane = [&](int64_t lane) {
        for (int64_t item = lane * items / lanes; item < (lane + 1) * items / lanes; ++item) {
            const int64_t block = item / (call.n_heads / heads);
            const int head = int(item % (call.n_heads / heads)) * heads;
            AttendItem job = {};
            job.q = call.q + head * call.head_dim;
            job.q_stride = call.q_stride;
            job.cache = of_head(call.cache, head / group);
            job.pieces = plan.pieces;
            job.span_start = spans.start.data();
            job.span_piece = spans.piece.data();
            job.span_index = spans.index.data();
            job.row_begin = block * kRowBlock;
            job.row_end = std::min<int64_t>(n, job.row_begin + kRowBlock);
            job.head_dim = call.head_dim;
            job.n_heads = heads;
            job.scale = call.scale;
            job.softcap = call.softcap;
            job.floats = scores + lane * lane_size;
            job.scores = job.floats + widened;
            job.score_stride = stride;
            job.out = call.out + head * call.head_dim;
            job.out_stride = call.out_stride;
            job.lse = call.lse ? call.lse + head : nullptr;
            job.lse_stride = call.n_heads;
            kernels.attend(job);
        }
    };
    // Sharing work this small costs more than doing it.
    constexpr int64_t kSmall = 1 << 17;
    if (total * call.n_heads * call.head_dim < kSmall) {
        for (int64_t lane = 0; lane < lanes; ++lane) run_lane(lane);
    } else {
        pool.run(lanes, run_lane);
    }
}

}  // namespace outlay
