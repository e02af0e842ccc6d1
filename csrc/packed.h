// How weights lie in memory, for every instruction set and for one token as for many: one stream, read once, in order.
//
// Outputs are cut into groups of 64 (the last may be narrower, a multiple of 16). A group holds, for each step of the
// depth, one element of each of its outputs side by side; a step is one element of fp32, or a pair of BF16 (what the
// dot-product instructions multiply at once). In BF16 the depth is padded with zeros to whole tiles of 32.
#pragma once

#include <cstdint>

#include "include/qwench.h"

namespace qwench {

constexpr int64_t kPanel = QW_PANEL;   // outputs of one vector
constexpr int64_t kGroup = 4 * kPanel;  // outputs of one stream
constexpr int64_t kStepBytes = 4;     // bytes of one output's step: one fp32 or two BF16
constexpr int64_t kDepthTile = 32;    // BF16 elements of depth in one tile

inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }
inline int64_t round_up(int64_t value, int64_t to) { return divide_up(value, to) * to; }

// Elements of depth that are stored for `in` elements.
inline int64_t padded_depth(bool bf16, int64_t in) { return bf16 ? round_up(in, kDepthTile) : in; }

// Steps of depth that are stored.
inline int64_t num_steps(bool bf16, int64_t in) { return bf16 ? padded_depth(true, in) / 2 : in; }

inline int64_t num_groups(int64_t out) { return divide_up(out, kGroup); }

// Panels of group `group` of `out` outputs.
inline int64_t panels_of(int64_t out, int64_t group) {
    const int64_t left = divide_up(out - group * kGroup, kPanel);
    return left < kGroup / kPanel ? left : kGroup / kPanel;
}

// Byte at which a group begins: all groups before it are full.
inline int64_t group_offset(bool bf16, int64_t in, int64_t group) {
    return group * kGroup * kStepBytes * num_steps(bf16, in);
}

inline int64_t packed_bytes(bool bf16, int64_t out, int64_t in) {
    return round_up(out, kPanel) * kStepBytes * num_steps(bf16, in);
}

// Cached keys and values lie as such matrices too, one for each tile of 64 positions of a key head: keys as [64, head_dim],
// values as [head_dim, 64], so that attention multiplies with them where they are. In 8 bits a tile holds codes in the order
// of BF16's elements, then the scales of its positions.

constexpr int64_t kTilePositions = QW_CACHE_TILE;
static_assert(kTilePositions == kGroup, "a tile's keys are one group");

inline int64_t kept_width(int64_t head_dim) { return round_up(head_dim, kDepthTile); }
inline int64_t tile_elements(int64_t head_dim) { return kTilePositions * kept_width(head_dim); }

// Elements from the beginning of a tile to those of its 64 columns `group`.
inline int64_t column_group_offset(int64_t group) { return group * kGroup * kTilePositions; }

// The place of an element of position `position` of a tile.
inline int64_t key_place(bool pairs, int64_t position, int64_t column) {
    return pairs ? (column / 2 * kGroup + position) * 2 + column % 2 : column * kGroup + position;
}
inline int64_t value_place(bool pairs, int64_t head_dim, int64_t position, int64_t column) {
    const int64_t group = column / kGroup, width = panels_of(head_dim, group) * kPanel, at = column % kGroup;
    const int64_t place = pairs ? (position / 2 * width + at) * 2 + position % 2 : position * width + at;
    return column_group_offset(group) + place;
}

}  // namespace qwench
