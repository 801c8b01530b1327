// Attention of query rows over the paged KV pool, in an order that nothing outside the row can change.
//
// A query vector (one row, one head) visits the pages of a segment (1024 tokens) in position order with an online
// softmax; each segment starts afresh and finished segments are folded in order. Prefill, chunks, decode and any split
// over threads or machines run exactly this sequence per vector.
#pragma once

#include <cstdint>

#include "isa.h"

namespace statepool {

constexpr int kPage = 16;           // tokens of one block
constexpr int kSegmentPages = 64;   // pages of one segment
constexpr int kSegment = kPage * kSegmentPages;

// Query vectors of some consecutive rows of one request and the heads that share one KV head, over one segment; for
// `heads` KV heads that lie side by side. Pages go outside and heads inside: a block is then read as one stretch.
// Vector v of a head belongs to row v / group. All float scratch and outputs are the caller's.
struct SegmentJob {
  int heads = 1;
  const float* q;  // [heads][vectors][head_dim]
  int vectors, group, head_dim;
  int64_t first_position;  // of row 0, counted from the segment's first token; may be negative: nothing seen yet
  int pages;               // pages of the segment that exist
  const int32_t* blocks;   // block of each page
  const void* keys;        // K page of block 0 and the first head: [head_dim][16], bf16 or float
  const void* values;      // V page of the same: [16][head_dim]
  int64_t block_stride;    // elements from a block to the next
  float scale;
  int first_page = 0;  // pages before it were visited already: m, l and acc go on from them
  float* scores;   // scratch [vectors][16]
  float* widened;  // scratch [2][16 * head_dim], for bf16 pages that many vectors share
  float* m;        // out [heads][vectors]: largest score, -inf if nothing was seen
  float* l;        // out [heads][vectors]: sum of exp(score - m)
  float* acc;      // out [heads][vectors][head_dim]: sum of exp(score - m) * V
};

struct AttentionKernels {
  void (*segment_bf16)(const SegmentJob& job);
  void (*segment_float)(const SegmentJob& job);
  // Folds a later segment (m2, l2, acc2) into (m, l, acc).
  void (*fold)(float* m, float* l, float* acc, const float* m2, const float* l2, const float* acc2, int vectors,
               int head_dim);
  // out = acc / l of one vector.
  void (*finish)(const float* acc, float l, float* out, int head_dim);
};

}  // namespace statepool

STATEPOOL_KERNELS(AttentionKernels, attention_kernels)
