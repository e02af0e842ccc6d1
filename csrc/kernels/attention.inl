// Causal attention of some query tokens over segments of their paged context. Included once per instruction set, after
// simd.h.
//
// Keys and values lie in the cache in the layout of packed weights (packed.h), so both products are the linear layer's
// kernels, with whatever the instruction set has for them, and one token reads its context as one stream: a score is one
// chain of additions over the head's width, an output one over the segment's positions. Segments lie at fixed positions,
// each is weighed by its own maximum, and they are folded together in their order: a token gets the same bits alone and in
// any company.

namespace qwench {
namespace {

constexpr int64_t kTileRows = 16;  // of the tiles that some linear kernels read
constexpr int64_t kSegmentTiles = kAttentionSegment / kTilePositions;
constexpr int64_t kCodesAhead = 2048;  // of codes that are being widened

// Inputs of a linear kernel: rows of `depth`, or tiles of 16 rows by 32 of depth.
template <class E>
struct InputRows {
    E* elements;
    int64_t depth;
    bool tiled;

    QW_INLINE E* row(int64_t r) const {
        if (!tiled) return elements + r * depth;
        return elements + r / kTileRows * kTileRows * depth + r % kTileRows * kDepthTile;
    }
    // From the first 32 elements of a row to its next 32.
    QW_INLINE int64_t run() const { return tiled ? kTileRows * kDepthTile : kDepthTile; }
};

// Where a head's tiles of a segment lie, and behind them what is read next; the scales of what was coded.
struct Segment {
    int64_t start, tiles;
    const char* keys[kSegmentTiles + 1];
    const char* values[kSegmentTiles + 1];
    float key_scales[kAttentionSegment], value_scales[kAttentionSegment];
};

// Codes of a tile as BF16, which holds them as they are, in the same order.
QW_INLINE void widen_codes(const char* codes, int64_t count, bf16* to) {
    for (int64_t i = 0; i < count; i += 2 * kLanes) {
        if (kAsksAhead) __builtin_prefetch(codes + i + kCodesAhead);
        store_exact(to + i, load_signed(codes + i));
        store_exact(to + i + kLanes, load_signed(codes + i + kLanes));
    }
}

// A tile's values with zeros for the positions from `count` to the end of its tile of depth: nobody wrote them, and zero
// times a NaN is one. `to` may be where they are.
template <class W>
void end_values(const char* tile, int64_t head_dim, int64_t count, char* to) {
    constexpr bool kPairs = std::is_same_v<W, bf16>;
    const int64_t end = round_up(count, kDepthTile), whole = kPairs ? round_up(count, 2) : count;
    for (int64_t group = 0; group < num_groups(head_dim); ++group) {
        const int64_t width = panels_of(head_dim, group) * kPanel;
        const W* from = reinterpret_cast<const W*>(tile) + column_group_offset(group);
        W* elements = reinterpret_cast<W*>(to) + column_group_offset(group);
        if (from != elements) std::memcpy(elements, from, static_cast<size_t>(whole * width) * sizeof(W));
        if (whole > count) {
            for (int64_t column = 0; column < width; ++column) elements[(count - 1) * width + 2 * column + 1] = {};
        }
        std::memset(elements + whole * width, 0, static_cast<size_t>((end - whole) * width) * sizeof(W));
    }
}

// weights <- e^(scale * scores - their maximum) for `count` scores, zeros up to `depth`; the maximum and the sum. Where
// keys and values are `coded`, their scales are put into the scores and into the weights.
template <class E>
void weigh(float* scores, int64_t count, int64_t depth, float scale, const Segment* coded, E* weights, int64_t run,
           float& maximum, float& total) {
    const V factor = all(scale), least_of_all = all(-__builtin_huge_valf());
    V seen = least_of_all;
    for (int64_t i = 0; i < count; i += kLanes) {
        V each = load(scores + i);
        if (coded != nullptr) {
            each = mul(each, load(coded->key_scales + i));
            store(scores + i, each);
        }
        seen = most(count - i < kLanes ? first_lanes(each, least_of_all, count - i) : each, seen);
    }
    maximum = largest(seen) * scale;
    const V subtracted = all(-maximum);
    V sums = zero();
    for (int64_t i = 0; i < depth; i += kLanes) {
        E* to = weights + i / kDepthTile * run + i % kDepthTile;
        V each = zero();
        if (i < count) {
            each = exponential(fma(load(scores + i), factor, subtracted));
            if (coded != nullptr) {
                sums = add(sums, count - i < kLanes ? first_lanes(each, zero(), count - i) : each);
                each = mul(each, load(coded->value_scales + i));
            }
            if (count - i < kLanes) each = first_lanes(each, zero(), count - i);
        }
        store(to, each);
        if (coded == nullptr) sums = add(sums, load(to));  // as they were rounded
    }
    total = sum(sums);
}

// One segment's result joins what was found in the segments before it.
QW_INLINE void fold(const float* output, float maximum, float total, int64_t width, AttentionPartial& into) {
    const float largest_seen = maximum > into.maximum ? maximum : into.maximum;
    const V old_factor = exponential(all(into.maximum - largest_seen)), factor = exponential(all(maximum - largest_seen));
    for (int64_t i = 0; i < width; i += kLanes) {
        store(into.output + i, fma(load(output + i), factor, mul(load(into.output + i), old_factor)));
    }
    float totals[kLanes];
    store(totals, fma(all(total), factor, mul(all(into.total), old_factor)));
    into.maximum = largest_seen;
    into.total = totals[0];
}

template <class T>
void finish(const AttentionPartial& partial, int64_t width, T* output) {
    for (int64_t i = 0; i < width; i += kLanes) {
        store_some(output + i, div(load(partial.output + i), all(partial.total)), width - i);
    }
}

// T: the type of queries and outputs, E: that of the linear kernel's inputs, W: that of keys and values in a product.
template <class T, class E, class W>
struct Attention {
    static constexpr bool kPairs = std::is_same_v<W, bf16>;
    static constexpr int64_t kElementBytes = sizeof(W);

    const AttentionTask& task;
    const qw_attention_arguments& a;
    const AttentionScratch& scratch;
    LinearKernel kernel;
    int64_t group, token, past;  // heads of a key head; the row's first token; positions before it
    InputRows<E> queries;
    qw_weight_type type = {};  // of keys and values in a product

    explicit Attention(const AttentionTask& t, LinearKernel linear, bool tiled)
        : task(t), a(*t.arguments), scratch(t.scratch), kernel(linear), group(a.query_heads / a.kv_heads),
          token(a.starts[t.row]), past(a.contexts[t.row] - (a.starts[t.row + 1] - token)),
          queries{static_cast<E*>(scratch.queries), padded_depth(kPairs, a.head_dim), tiled} {
        type.element = kPairs ? QW_BF16 : QW_F32;
    }

    int64_t rows() const { return (task.last_token - task.first_token) * group; }
    // Positions that the block's row sees.
    int64_t seen(int64_t row) const { return past + task.first_token + row / group + 1; }

    void load_queries() const {
        for (int64_t row = 0; row < rows(); ++row) {
            const int64_t head = task.kv_head * group + row % group;
            const int64_t place = (token + task.first_token + row / group) * a.query_stride + head * a.head_dim;
            const T* from = static_cast<const T*>(a.query) + place;
            E* to = queries.row(row);
            for (int64_t i = 0; i < queries.depth; i += kLanes) {
                const int64_t left = a.head_dim - i;
                const V each = left > 0 ? load_some(from + i, left) : zero();
                store_some(to + i / kDepthTile * queries.run() + i % kDepthTile, each, queries.depth - i);
            }
        }
    }

    // The head's tile that a position of the row is in, of keys or of values.
    const char* tile_of(const void* cache, int64_t position) const {
        const int64_t page = a.page_table[task.row * a.page_stride + position / a.page_size];
        const int64_t tile = (page * a.page_size + position % a.page_size) / kTilePositions;
        return static_cast<const char*>(cache) + (tile * a.kv_heads + task.kv_head) * cache_tile_bytes(a);
    }

    char* widened(char* memory, int64_t tile) const { return memory + tile * tile_elements(a.head_dim) * kElementBytes; }

    // Coded keys and values of one tile, of whose positions `filled` count.
    void widen(const char* keys, const char* values, int64_t filled, int64_t tile, Segment& segment) const {
        const int64_t count = tile_elements(a.head_dim);
        widen_codes(keys, count, reinterpret_cast<bf16*>(widened(scratch.keys, tile)));
        widen_codes(values, count, reinterpret_cast<bf16*>(widened(scratch.values, tile)));
        const size_t bytes = static_cast<size_t>(filled) * sizeof(float);
        std::memcpy(segment.key_scales + tile * kTilePositions, keys + count, bytes);
        std::memcpy(segment.value_scales + tile * kTilePositions, values + count, bytes);
    }

    // The first `count` positions of a segment, as the linear kernels take them.
    void gather(int64_t count, Segment& segment) const {
        segment.tiles = divide_up(count, kTilePositions);
        for (int64_t tile = 0; tile < segment.tiles; ++tile) {
            const int64_t first = tile * kTilePositions, position = segment.start + first;
            const int64_t filled = count - first < kTilePositions ? count - first : kTilePositions;
            const char* keys = tile_of(a.keys, position);
            const char* values = tile_of(a.values, position);
            if (a.coded) widen(keys, values, filled, tile, segment);
            segment.keys[tile] = a.coded ? widened(scratch.keys, tile) : keys;
            segment.values[tile] = a.coded ? widened(scratch.values, tile) : values;
            if (filled % kDepthTile == 0) continue;
            char* ended = widened(scratch.values, a.coded ? tile : 0);
            end_values<W>(segment.values[tile], a.head_dim, filled, ended);
            segment.values[tile] = ended;
        }
        const int64_t next = segment.start + kAttentionSegment;
        const bool goes_on = next < task.last_segment * kAttentionSegment;
        segment.keys[segment.tiles] = segment.values[0];
        segment.values[segment.tiles] = tile_of(a.keys, goes_on ? next : segment.start);
    }

    // y [count, out] = inputs times one group of weights [out, in], which lies in `pieces`.
    void multiply(const InputRows<E>& inputs, int64_t count, const qw_weight& weight, const char* const* pieces,
                  int64_t piece_depth, float* y, int64_t y_stride) const {
        qw_linear_arguments l = {};
        l.weight = &weight;
        l.tokens = count;
        l.type = QW_F32;
        l.y = y;
        l.y_stride = y_stride;
        kernel({&l, inputs.elements, inputs.tiled ? 0 : inputs.depth, pieces, piece_depth}, 0, 0, count);
    }

    // Rows [first, first + count) times the keys of a segment's first positions.
    void score(int64_t first, int64_t count, int64_t positions, const Segment& segment) const {
        const InputRows<E> inputs = {queries.elements + first * queries.depth, queries.depth, queries.tiled};
        const qw_weight weight = {&type, nullptr, kTilePositions, a.head_dim};
        for (int64_t tile = 0; tile * kTilePositions < positions; ++tile) {
            float* scores = scratch.scores + tile * kTilePositions;
            multiply(inputs, count, weight, segment.keys + tile, queries.depth, scores, kAttentionSegment);
        }
    }

    // Weights times the values of a segment.
    void sum_values(const InputRows<E>& weights, int64_t count, const Segment& segment) const {
        const int64_t groups = num_groups(a.head_dim);
        for (int64_t columns = 0; columns < groups; ++columns) {
            const char* pieces[kSegmentTiles + 1];  // these columns of each tile
            for (int64_t tile = 0; tile < segment.tiles; ++tile) {
                pieces[tile] = segment.values[tile] + column_group_offset(columns) * kElementBytes;
            }
            const int64_t next = column_group_offset(columns + 1) * kElementBytes;
            pieces[segment.tiles] = columns + 1 < groups ? segment.values[0] + next : segment.values[segment.tiles];
            const int64_t left = a.head_dim - columns * kGroup;
            const qw_weight weight = {&type, nullptr, left < kGroup ? left : kGroup, weights.depth};
            multiply(weights, count, weight, pieces, kTilePositions, scratch.products + columns * kGroup, kAttentionWidth);
        }
    }

    // Rows [first, first + count) over one segment.
    void attend_rows(int64_t first, int64_t count, const Segment& segment) const {
        const int64_t last_seen = seen(first + count - 1) - segment.start;
        const int64_t positions = last_seen < kAttentionSegment ? last_seen : kAttentionSegment;
        score(first, count, positions, segment);
        const InputRows<E> weights = {static_cast<E*>(scratch.weights), round_up(positions, kDepthTile), queries.tiled};
        float maxima[kAttentionRows], totals[kAttentionRows];
        for (int64_t row = 0; row < count; ++row) {
            int64_t sees = seen(first + row) - segment.start;
            sees = sees < 0 ? 0 : sees < positions ? sees : positions;
            weigh(scratch.scores + row * kAttentionSegment, sees, weights.depth, a.scale, a.coded ? &segment : nullptr,
                  weights.row(row), weights.run(), maxima[row], totals[row]);
        }
        sum_values(weights, count, segment);
        const int64_t number = segment.start / kAttentionSegment - task.first_segment;
        AttentionPartial* partials = scratch.partials + number * task.partial_stride + first;
        for (int64_t row = 0; row < count; ++row) {
            if (seen(first + row) <= segment.start) continue;
            const float* output = scratch.products + row * kAttentionWidth;
            if (number > 0 && task.partial_stride == 0) {
                fold(output, maxima[row], totals[row], a.head_dim, partials[row]);
            } else {
                partials[row].maximum = maxima[row];
                partials[row].total = totals[row];
                std::memcpy(partials[row].output, output, sizeof partials[row].output);
            }
        }
    }

    void attend_segment(int64_t number) const {
        Segment segment;
        segment.start = number * kAttentionSegment;
        const int64_t left = seen(rows() - 1) - segment.start;
        gather(left < kAttentionSegment ? left : kAttentionSegment, segment);
        for (int64_t row = 0; row < rows(); row += kAttentionRows) {
            const int64_t some = rows() - row < kAttentionRows ? rows() - row : kAttentionRows;
            if (seen(row + some - 1) > segment.start) attend_rows(row, some, segment);
        }
    }

    void write_outputs() const {
        for (int64_t row = 0; row < rows(); ++row) {
            const int64_t head = task.kv_head * group + row % group;
            const int64_t place = (token + task.first_token + row / group) * a.output_stride + head * a.head_dim;
            finish(scratch.partials[row], a.head_dim, static_cast<T*>(a.output) + place);
        }
    }
};

template <class T, class E, class W>
void attend_as(const AttentionTask& task, LinearKernel linear, bool tiled) {
    const Attention<T, E, W> attention(task, linear, tiled);
    attention.load_queries();
    for (int64_t segment = task.first_segment; segment < task.last_segment; ++segment) {
        attention.attend_segment(segment);
    }
    if (task.finishes) attention.write_outputs();
}

void attend(const AttentionTask& task) {
    const Kernels& kernels = *task.kernels;
    if (task.arguments->type != QW_BF16) {
        if (task.arguments->coded) {
            attend_as<float, float, bf16>(task, kernels.linear_bf16, false);
        } else {
            attend_as<float, float, float>(task, kernels.linear_f32, false);
        }
    } else if (kernels.linear_bf16_pairs == nullptr) {
        attend_as<bf16, float, bf16>(task, kernels.linear_bf16, false);
    } else {
        attend_as<bf16, bf16, bf16>(task, kernels.linear_bf16_pairs, kernels.pair_inputs == Inputs::tiles);
    }
}

// Partials of one query head, `stride` apart, segment after segment: the first becomes the result.
void merge_attention(const qw_attention_arguments& a, AttentionPartial* partials, int64_t segments, int64_t stride,
                     int64_t place) {
    for (int64_t segment = 1; segment < segments; ++segment) {
        const AttentionPartial& next = partials[segment * stride];
        fold(next.output, next.maximum, next.total, a.head_dim, *partials);
    }
    if (a.type == QW_BF16) {
        finish(*partials, a.head_dim, static_cast<bf16*>(a.output) + place);
    } else {
        finish(*partials, a.head_dim, static_cast<float*>(a.output) + place);
    }
}

}  // namespace
}  // namespace qwench
