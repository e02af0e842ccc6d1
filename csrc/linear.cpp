// Linear layers: brings the inputs into the form each kernel reads, and divides the outputs of all into tasks of one job.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <new>
#include <type_traits>

#include "bf16.h"
#include "context.h"
#include "packed.h"

using namespace qwench;

namespace {

constexpr int64_t kTile = kTokenTile;
constexpr int64_t kTaskBytes = 24 << 10;     // of packed weights: enough to be worth taking, small enough to share evenly
constexpr int64_t kAloneValues = 64 << 10;   // fewer inputs than this are converted faster by one thread alone

bool is_bf16(const qw_linear_arguments& a) { return a.weight->type->element == QW_BF16; }

// A row of x in type To, zeros from `in` to `depth`.
template <class From, class To>
void copy_row(const void* x, int64_t in, int64_t depth, To* target) {
    const From* from = static_cast<const From*>(x);
    if constexpr (std::is_same_v<From, To>) {
        std::memcpy(target, from, static_cast<size_t>(in) * sizeof(To));
    } else {
        for (int64_t i = 0; i < in; ++i) target[i] = widen(from[i]);
    }
    std::memset(target + in, 0, static_cast<size_t>(depth - in) * sizeof(To));
}

const char* row_of(const qw_linear_arguments& a, int64_t token) {
    return static_cast<const char*>(a.x) + input_row(a, token) * a.x_stride * value_bytes(a.type);
}

// fp32 or BF16 rows [tokens, depth] of one tile.
void copy_tile(const Layer& layer, int64_t tile) {
    const qw_linear_arguments& a = *layer.arguments;
    const int64_t in = a.weight->in, depth = layer.depth;
    for (int64_t token = tile * kTile; token < std::min(a.tokens, (tile + 1) * kTile); ++token) {
        const char* x = row_of(a, token);
        if (layer.pairs) {
            copy_row<bf16>(x, in, depth, static_cast<bf16*>(layer.inputs) + token * depth);
        } else if (a.type == QW_BF16) {
            copy_row<bf16>(x, in, depth, static_cast<float*>(layer.inputs) + token * depth);
        } else {
            copy_row<float>(x, in, depth, static_cast<float*>(layer.inputs) + token * depth);
        }
    }
}

// BF16 tiles [tokens / 16, depth / 32, 16, 32], zeros where there is no token.
void cut_tile(const Layer& layer, int64_t tile) {
    const qw_linear_arguments& a = *layer.arguments;
    constexpr int64_t kTileSize = kTile * kDepthTile;
    bf16* memory = static_cast<bf16*>(layer.inputs) + tile * kTile * layer.depth;
    for (int64_t row = 0; row < kTile; ++row) {
        const int64_t token = tile * kTile + row, in = token < a.tokens ? a.weight->in : 0;
        const bf16* x = in > 0 ? reinterpret_cast<const bf16*>(row_of(a, token)) : nullptr;
        for (int64_t at = 0; at < layer.depth; at += kDepthTile) {
            bf16* target = memory + at / kDepthTile * kTileSize + row * kDepthTile;
            const int64_t count = std::max<int64_t>(0, std::min(in - at, kDepthTile));
            if (count > 0) std::memcpy(target, x + at, static_cast<size_t>(count) * sizeof(bf16));
            std::memset(target + count, 0, static_cast<size_t>(kDepthTile - count) * sizeof(bf16));
        }
    }
}

bool reads_upper_bits(const qw_linear_arguments& a) {
    if (a.few == nullptr || a.tokens != 1 || !is_vocabulary(*a.weight->type, a.weight->out)) return false;
    return a.few[0] >= 1 && a.few[0] <= QW_EXACT_PANELS;
}

// What a layer needs: the form of its inputs and the bytes that takes, none where they are read as they lie.
Layer plan_layer(const Kernels& kernels, const qw_linear_arguments& a) {
    Layer layer = {};
    layer.arguments = &a;
    layer.coded = a.weight->type->element == QW_CODES;
    if (layer.coded) {
        layer.form = a.weight->type->nested ? Inputs::nested_codes : Inputs::codes;
        layer.input_bytes = coded_bytes(*a.weight->type, a.tokens, a.weight->in);
        layer.correction_bytes = correction_bytes(*a.weight->type, a.tokens, a.weight->in);
        if (!reads_upper_bits(a)) return layer;
        const int64_t panels = divide_up(a.weight->out, kPanel), supers = coded_blocks(a.weight->in) / kChunkBlocks;
        layer.look_bytes = round_up(panels * static_cast<int64_t>(sizeof(Look)), kVectorBytes);
        layer.norm_bytes = round_up(supers * static_cast<int64_t>(sizeof(float)), kVectorBytes);
        return layer;
    }
    layer.pairs = is_bf16(a) && a.type == QW_BF16 && kernels.linear_bf16_pairs != nullptr;
    layer.kernel = layer.pairs ? kernels.linear_bf16_pairs : is_bf16(a) ? kernels.linear_bf16 : kernels.linear_f32;
    layer.form = layer.pairs ? kernels.pair_inputs : Inputs::rows;
    layer.depth = padded_depth(is_bf16(a), a.weight->in);
    const bool same_type = layer.pairs || a.type == QW_F32;
    const bool lies_so = layer.form == Inputs::rows && same_type && layer.depth == a.weight->in && a.rows == nullptr;
    const int64_t tokens = layer.form == Inputs::tiles ? round_up(a.tokens, kTile) : a.tokens;
    if (!lies_so) layer.input_bytes = round_up(tokens * layer.depth * (layer.pairs ? 2 : 4), 64);
    return layer;
}

bool same_inputs(const Layer& one, const Layer& other) {
    const qw_linear_arguments &a = *one.arguments, &b = *other.arguments;
    return one.form == other.form && one.pairs == other.pairs && one.depth == other.depth && a.tokens == b.tokens &&
           a.type == b.type && a.x == b.x && a.rows == b.rows && a.x_stride == b.x_stride && a.weight->in == b.weight->in;
}

// Tiles of inputs that a layer converts: none where it shares them, or reads them as they lie.
int64_t tiles_of(const Layer& layer) {
    return layer.shared || layer.input_bytes == 0 ? 0 : divide_up(layer.arguments->tokens, kTile);
}

// Panels or groups of a task, and tasks: so much of the weights that taking a task costs little beside it.
void divide_layer(Layer& layer, int64_t& tasks) {
    const qw_linear_arguments& a = *layer.arguments;
    layer.token_blocks = divide_up(a.tokens, kTokenBlock);
    layer.units = layer.coded ? divide_up(a.weight->out, kPanel) : num_groups(a.weight->out);
    layer.units_per_task = 1;
    if (layer.coded) {
        const int64_t bytes = panel_bytes(type_in_panels(*a.weight->type, a.weight->out), a.weight->in);
        layer.units_per_task = std::max<int64_t>(1, kTaskBytes / std::max<int64_t>(1, bytes));
        if (layer.form == Inputs::nested_codes) layer.units_per_task = round_up(layer.units_per_task, 2);
    }
    layer.first_task = tasks;
    tasks += divide_up(layer.units, layer.units_per_task) * layer.token_blocks;
}

// What all layers of a call come to.
struct Work {
    int64_t tiles, values, tasks;  // values: of the tiles
};

// All layers' plans with room for their inputs. False where there is not enough memory.
bool plan_layers(qw_context& context, const qw_linear_arguments* arguments, int64_t count, Work& work) {
    std::vector<Layer>& layers = context.layers;
    int64_t bytes = 0;
    work = {};
    try {
        layers.clear();
        for (int64_t i = 0; i < count; ++i) {
            layers.push_back(plan_layer(*context.kernels, arguments[i]));
            Layer& layer = layers.back();
            layer.shared = i > 0 && same_inputs(layers[static_cast<size_t>(i) - 1], layer);
            bytes += layer.correction_bytes + layer.look_bytes + layer.norm_bytes + (layer.shared ? 0 : layer.input_bytes);
            layer.first_tile = work.tiles;
            work.tiles += tiles_of(layer);
            if (tiles_of(layer) > 0) work.values += layer.arguments->tokens * layer.arguments->weight->in;
            divide_layer(layer, work.tasks);
        }
    } catch (const std::bad_alloc&) {
        return false;
    }
    char* memory = static_cast<char*>(context.inputs.reserve(bytes));
    if (memory == nullptr && bytes > 0) return false;
    for (size_t i = 0; i < layers.size(); ++i) {
        Layer& layer = layers[i];
        layer.corrections = memory;
        memory += layer.correction_bytes;
        layer.looks = layer.look_bytes > 0 ? reinterpret_cast<Look*>(memory) : nullptr;
        memory += layer.look_bytes;
        layer.norms = reinterpret_cast<float*>(memory);
        memory += layer.norm_bytes;
        layer.inputs = layer.shared ? layers[i - 1].inputs : memory;
        memory += layer.shared ? 0 : layer.input_bytes;
    }
    return true;
}

CodedInputs coded_of(const Layer& layer) {
    const qw_weight& weight = *layer.arguments->weight;
    return coded_inputs(*weight.type, layer.inputs, layer.corrections, layer.arguments->tokens, weight.in);
}

const CodedKernels& coded_kernels(const qw_context& context, const Layer& layer) {
    return layer.form == Inputs::nested_codes ? context.kernels->coded.nested : context.kernels->coded.plain;
}

// One tile of a layer's inputs, with what the layers that share them make of it.
void convert_tile(const qw_context& context, size_t at, int64_t tile) {
    const std::vector<Layer>& layers = context.layers;
    const Layer& layer = layers[at];
    if (!layer.coded) return layer.form == Inputs::tiles ? cut_tile(layer, tile) : copy_tile(layer, tile);
    coded_kernels(context, layer).code_inputs(*layer.arguments, coded_of(layer), tile);
    for (size_t i = at; i == at || (i < layers.size() && layers[i].shared); ++i) {
        if (layers[i].correction_bytes == 0) continue;
        coded_kernels(context, layers[i]).correct_inputs(*layers[i].arguments->weight->type, coded_of(layers[i]), tile);
    }
}

// The layer to which one of all tiles, or tasks, belongs.
size_t layer_of(const std::vector<Layer>& layers, int64_t Layer::* first, int64_t index) {
    const auto after = [first](int64_t each, const Layer& layer) { return each < layer.*first; };
    return static_cast<size_t>(std::upper_bound(layers.begin(), layers.end(), index, after) - layers.begin()) - 1;
}

void convert_inputs(qw_context& context, const Work& work) {
    const auto convert = [&](int64_t tile) {
        const size_t at = layer_of(context.layers, &Layer::first_tile, tile);
        convert_tile(context, at, tile - context.layers[at].first_tile);
    };
    if (work.values > kAloneValues) return context.pool.run(work.tiles, convert);
    for (int64_t tile = 0; tile < work.tiles; ++tile) convert(tile);
}

CodedJob coded_job(const Layer& layer) { return {layer.arguments, coded_of(layer), layer.looks, layer.norms}; }

void compute_task(const qw_context& context, const Layer& layer, int64_t task) {
    const qw_linear_arguments& a = *layer.arguments;
    // Blocks of tokens are the inner index: a thread that goes on finds the weights in its cache.
    const int64_t first = task % layer.token_blocks * kTokenBlock, last = std::min(a.tokens, first + kTokenBlock);
    const int64_t begin = task / layer.token_blocks * layer.units_per_task;
    if (layer.coded) {
        const int64_t end = std::min(layer.units, begin + layer.units_per_task);
        return coded_kernels(context, layer).linear(coded_job(layer), begin, end, first, last);
    }
    const LinearJob job = {&a, layer.input_bytes > 0 ? layer.inputs : a.x, layer.input_bytes > 0 ? layer.depth : a.x_stride};
    layer.kernel(job, begin, first, last);
}

// The norms of the token that reads a vocabulary by its upper bits.
void measure_inputs(const Layer& layer) {
    const CodedInputs inputs = coded_of(layer);
    for (int64_t super = 0; super < inputs.blocks / kChunkBlocks; ++super) {
        const int8_t* numbers = inputs.numbers + super * QW_SUPER_BLOCK;
        int32_t squares = 0;
        for (int64_t i = 0; i < QW_SUPER_BLOCK; ++i) squares += numbers[i] * numbers[i];
        layer.norms[super] = inputs.scales[super] * inputs.scales[super] * static_cast<float>(squares);
    }
}

bool looks_larger(const Look& one, const Look& other) {
    return one.most != other.most ? one.most > other.most : one.panel < other.panel;
}

// Computes the panels of some looks from all bits.
void compute_exactly(qw_context& context, const Layer& layer, Look* begin, Look* end) {
    constexpr int64_t kPanels = 16;  // of a task
    const CodedJob job = coded_job(layer);
    context.pool.run(divide_up(end - begin, kPanels), [&](int64_t task) {
        Look* first = begin + task * kPanels;
        for (Look* look = first; look < std::min(first + kPanels, end); ++look) coded_kernels(context, layer).exact(job, *look);
    });
}

// Moves the panels that may hold one of the largest outputs, or one that counts as these do, behind the exact ones. These
// tell how many spreads the standard deviation is between an output and how it looks. Returns the end of those it moved.
Look* add_likely(const Layer& layer, Look* exact_end) {
    constexpr double kDeviations = 5.5;  // farther off is one output in twenty-five million
    double squares = 0;
    for (const Look* look = layer.looks; look < exact_end; ++look) squares += look->squares;
    const double reach = kDeviations * std::sqrt(squares / static_cast<double>((exact_end - layer.looks) * kPanel));
    Look* last = layer.looks + static_cast<int64_t>(layer.arguments->few[0]) - 1;
    std::nth_element(layer.looks, last, exact_end, looks_larger);
    const double least = double{of_rank(last->most)} - layer.arguments->few[1];
    const auto may_count = [&](const Look& look) { return !(of_rank(look.most) + reach * look.spread < least); };
    return std::partition(exact_end, layer.looks + layer.units, may_count);
}

// The outputs of a vocabulary that count, from all bits: those of the panels that look largest, then of every panel that may
// hold one of the largest after all.
void make_exact(qw_context& context, const Layer& layer) {
    Look *exact_end = layer.looks + QW_EXACT_PANELS, *end = layer.looks + layer.units;
    std::nth_element(layer.looks, exact_end - 1, end, looks_larger);
    compute_exactly(context, layer, layer.looks, exact_end);
    end = add_likely(layer, exact_end);
    if (end - layer.looks < layer.units / 2) return compute_exactly(context, layer, exact_end, end);
    Layer whole = layer;  // so much is read faster as it lies
    whole.looks = nullptr;
    context.pool.run(divide_up(layer.units, layer.units_per_task), [&](int64_t task) { compute_task(context, whole, task); });
}

}  // namespace

int32_t qw_linear_many(qw_context* context, const qw_linear_arguments* arguments, int64_t count) {
    Work work;
    if (!plan_layers(*context, arguments, count, work)) return 1;
    const std::vector<Layer>& layers = context->layers;
    convert_inputs(*context, work);
    for (const Layer& layer : layers) {
        if (layer.looks != nullptr) measure_inputs(layer);
    }
    context->pool.run(work.tasks, [&](int64_t task) {
        const Layer& layer = layers[layer_of(layers, &Layer::first_task, task)];
        compute_task(*context, layer, task - layer.first_task);
    });
    for (const Layer& layer : layers) {
        if (layer.looks != nullptr) make_exact(*context, layer);
    }
    return 0;
}

int32_t qw_linear(qw_context* context, const qw_linear_arguments* arguments) { return qw_linear_many(context, arguments, 1); }
