"use strict";
// From the numbers in the page to a mask, by the rules of attention_pruning.make.from_pattern: the same cells.
// A pattern has layers x heads x q x k blocks of `pool` cells a side. A tau is a whole number of thousandths.

// ---- What the page holds ----

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// 16 bits are the exponent and 8 bits of the fraction of a float32 that is not negative.
function floatsOf(codes) {
  const bits = new Uint32Array(codes.length);
  for (let i = 0; i < codes.length; i++) bits[i] = codes[i] << 15;
  return new Float32Array(bits.buffer);
}

// The order is that of Shown.packed in shown.py.
function decode(header, base64) {
  const p = { ...header };
  p.q = Math.ceil(p.queries / p.pool);
  p.k = Math.ceil(p.keys / p.pool);
  p.area = p.q * p.k;
  p.rows = p.layers * p.heads * p.q;
  const buffer = bytesOf(base64).buffer;
  let offset = 0;
  const take = (kind, length) => {
    const taken = new kind(buffer, offset, length);
    offset += taken.byteLength;
    return taken;
  };
  p.seen = take(Uint32Array, p.area);
  p.cells = take(Uint32Array, p.area);
  p.average = p.exact ? take(Float32Array, p.rows * p.k) : floatsOf(take(Uint16Array, p.rows * p.k));
  p.share = p.mask ? take(Uint8Array, p.rows * p.k) : null;
  p.useful = usefulOf(p, take(Uint8Array, p.queries * Math.ceil(p.k / 8)));
  p.visible = visibleOf(p);
  p.allowed = p.cells.map((cells) => (cells > 0 ? 1 : 0));
  p.best = bestOf(p);
  return p;
}

// Whether a query (in cells) has an allowed cell in a block of keys.
function usefulOf(p, packed) {
  const stride = Math.ceil(p.k / 8);
  return (query, key) => (packed[query * stride + (key >> 3)] >> (key & 7)) & 1;
}

// A block is visible if its last query sees its first key.
function visibleOf(p) {
  const visible = new Uint8Array(p.area);
  for (let i = 0; i < p.q; i++) {
    const last = p.causal ? Math.min((i + 1) * p.pool, p.queries) - 1 + p.keys - p.queries : Infinity;
    for (let j = 0; j < p.k; j++) visible[i * p.k + j] = j * p.pool <= last ? 1 : 0;
  }
  return visible;
}

// ---- The row floor ----

// The sets of key blocks that the queries of a row of blocks can use, each once.
function usefulRows(p, i) {
  const found = new Map();
  for (let query = i * p.pool; query < Math.min((i + 1) * p.pool, p.queries); query++) {
    const keys = [];
    for (let j = 0; j < p.k; j++) if (p.useful(query, j)) keys.push(j);
    if (keys.length) found.set(keys.join(), keys);
  }
  return [...found.values()];
}

// What "keep-best" keeps: of each query's blocks the one with the largest average, of equals the last. It is the last
// that a growing tau takes, so that a row is empty just when its best block went.
function bestOf(p) {
  const best = new Uint8Array(p.rows * p.k);
  for (let i = 0; i < p.q; i++) {
    for (const keys of usefulRows(p, i)) {
      for (let row = i; row < p.rows; row += p.q) {
        let top = row * p.k + keys[0];
        for (const j of keys) if (p.average[row * p.k + j] >= p.average[top]) top = row * p.k + j;
        best[top] = 1;
      }
    }
  }
  return best;
}

// ---- From tau to a mask ----

// "published": what lies in the bounding box of what was observed, or everything; "allowed": allowed blocks alone.
function candidatesOf(p, rule, crop) {
  if (rule === "allowed") return p.allowed;
  if (!crop) return new Uint8Array(p.area).fill(1);
  const rows = [], columns = [];
  p.allowed.forEach((one, cell) => one && (rows.push(Math.floor(cell / p.k)), columns.push(cell % p.k)));
  const inside = (x, all) => x >= all[0] && x <= all[1];
  const ends = (all) => all.reduce(([low, high], x) => [Math.min(low, x), Math.max(high, x)], [Infinity, -Infinity]);
  const [rowEnds, columnEnds] = [ends(rows), ends(columns)];
  return p.allowed.map((_, cell) => (inside(Math.floor(cell / p.k), rowEnds) && inside(cell % p.k, columnEnds) ? 1 : 0));
}

// Sorts the averages of every group that competes, once; then a tau is a threshold.
function prepare(p, rule, scope, crop) {
  const candidate = candidatesOf(p, rule, crop);
  const perRow = new Uint32Array(p.q);
  candidate.forEach((one, cell) => (perRow[Math.floor(cell / p.k)] += one));
  const rowsInGroup = { model: p.rows, layer: p.heads * p.q, head: p.q, row: 1 }[scope];
  const starts = new Uint32Array(p.rows / rowsInGroup + 1);
  for (let row = 0; row < p.rows; row++) starts[Math.floor(row / rowsInGroup) + 1] += perRow[row % p.q];
  for (let group = 1; group < starts.length; group++) starts[group] += starts[group - 1];
  const sorted = new Float32Array(starts[starts.length - 1]);
  let filled = 0;
  for (let row = 0; row < p.rows; row++) {
    const cells = (row % p.q) * p.k, values = row * p.k;
    for (let j = 0; j < p.k; j++) if (candidate[cells + j]) sorted[filled++] = p.average[values + j];
  }
  for (let group = 0; group + 1 < starts.length; group++) sorted.subarray(starts[group], starts[group + 1]).sort();
  return { rule, candidate, rowsInGroup, starts, sorted };
}

// As numpy rounds: a half to the even neighbour.
function roundHalfEven(x) {
  const floor = Math.floor(x), rest = x - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}

// What goes of a group: all averages below `limit`, and of those equal to it the first `ties`.
function thresholdOf(sorted, rule, tau) {
  const n = sorted.length;
  if (rule === "published") {
    const index = roundHalfEven((n - 1) * (tau / 10 / 100)); // numpy's percentile of tau / 10 percent, "nearest"
    return n ? { limit: sorted[index], ties: Infinity } : { limit: -1, ties: 0 };
  }
  const budget = Math.floor((tau * n) / 1000);
  if (!budget) return { limit: -1, ties: 0 };
  const limit = sorted[budget - 1];
  return { limit, ties: budget - sorted.indexOf(limit) };
}

// The mask: 1 where a block of a layer and head is pruned.
function prune(p, prepared, tau, keepBest) {
  const pruned = new Uint8Array(p.rows * p.k);
  if (tau === 0) return pruned;
  const { rule, candidate, rowsInGroup, starts, sorted } = prepared;
  let limit = -1, ties = 0;
  for (let row = 0; row < p.rows; row++) {
    if (row % rowsInGroup === 0) {
      const group = row / rowsInGroup;
      ({ limit, ties } = thresholdOf(sorted.subarray(starts[group], starts[group + 1]), rule, tau));
    }
    const cells = (row % p.q) * p.k, values = row * p.k;
    for (let j = 0; j < p.k; j++) {
      const x = p.average[values + j], cell = cells + j;
      if (x > limit || !candidate[cell]) continue;
      if (x === limit && ties-- <= 0) continue;
      const unobserved = p.visible[cell] && !p.allowed[cell];
      if (!unobserved && !(keepBest && p.best[values + j])) pruned[values + j] = 1;
    }
  }
  return pruned;
}

// ---- How sparse it is ----

// Pruned allowed cells / allowed cells, of each layer and of all.
function effectiveSparsity(p, pruned) {
  const total = p.cells.reduce((sum, cells) => sum + cells, 0) * p.heads;
  const used = new Array(p.layers).fill(0);
  for (let head = 0, at = 0; head < p.layers * p.heads; head++) {
    let sum = 0;
    for (let cell = 0; cell < p.area; cell++, at++) if (pruned[at]) sum += p.cells[cell];
    used[Math.floor(head / p.heads)] += sum;
  }
  return { layers: used.map((sum) => sum / total), all: used.reduce((a, b) => a + b) / (total * p.layers) };
}

// Skipped blocks / blocks of `size` cells a side that hold an allowed cell; skipped: nothing visible in it is kept.
function blockSparsity(p, pruned, size) {
  const ratio = size / p.pool, width = Math.ceil(p.k / ratio);
  const larger = new Uint32Array(p.area);
  for (let cell = 0; cell < p.area; cell++) {
    larger[cell] = Math.floor(Math.floor(cell / p.k) / ratio) * width + Math.floor((cell % p.k) / ratio);
  }
  const holds = new Uint8Array(Math.ceil(p.q / ratio) * width), computed = new Uint8Array(holds.length);
  p.allowed.forEach((one, cell) => (holds[larger[cell]] |= one));
  let skipped = 0;
  for (let head = 0, at = 0; head < p.layers * p.heads; head++) {
    computed.fill(0);
    for (let cell = 0; cell < p.area; cell++, at++) computed[larger[cell]] |= p.visible[cell] & ~pruned[at];
    for (let block = 0; block < holds.length; block++) skipped += holds[block] & ~computed[block];
  }
  return skipped / (holds.reduce((a, b) => a + b, 0) * p.layers * p.heads);
}

// ---- Attention by distance ----

// Distances (query minus key; memory slots come before the first query) in blocks: that of a block is its place here.
function distanceOf(p, i, j) {
  const memory = p.causal ? Math.floor((p.keys - p.queries) / p.pool) : 0;
  return i - j + memory;
}

// The mean over the allowed blocks of each distance of each head, NaN where there is none: from the distance `first` on.
function byDistance(p) {
  const first = distanceOf(p, 0, p.k - 1), length = p.q + p.k - 1;
  const blocks = new Uint32Array(length);
  const means = new Float64Array(p.layers * p.heads * length);
  for (let row = 0; row < p.rows; row++) {
    const i = row % p.q, start = Math.floor(row / p.q) * length;
    for (let j = 0; j < p.k; j++) {
      if (!p.allowed[i * p.k + j]) continue;
      means[start + distanceOf(p, i, j) - first] += p.average[row * p.k + j];
      if (row < p.q) blocks[distanceOf(p, i, j) - first] += 1;
    }
  }
  return { first, length, means: means.map((sum, at) => (blocks[at % length] ? sum / blocks[at % length] : NaN)) };
}
