"use strict";
// From the numbers in the page to the masks of every tau, by the rules of attention_pruning.make.from_pattern: the same cells.
// A pattern has layers x heads x q x k blocks of `pool` cells a side. A tau is a whole number of thousandths.

// ---- What the page holds ----

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// 16 bits are the exponent and 8 bits of the fraction of a float32 that is not negative.
const DROPPED_BITS = 15;
function floatsOf(codes) {
  const bits = new Uint32Array(codes.length);
  for (let i = 0; i < codes.length; i++) bits[i] = codes[i] << DROPPED_BITS;
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

// A block that no tau takes.
const NEVER = 1001;
// Averages that compete are sorted by value, then by place: both fit in the 53 bits of a whole number.
const PLACES = 2 ** 22;

// "published": what lies in the bounding box of what was observed, or everything; "allowed": allowed blocks alone.
function candidatesOf(p, rule, crop) {
  if (rule === "allowed") return p.allowed;
  const box = crop ? [p.q, -1, p.k, -1] : [0, p.q - 1, 0, p.k - 1];
  for (let cell = 0; crop && cell < p.area; cell++) {
    if (!p.allowed[cell]) continue;
    const i = Math.floor(cell / p.k), j = cell % p.k;
    box.splice(0, 4, Math.min(box[0], i), Math.max(box[1], i), Math.min(box[2], j), Math.max(box[3], j));
  }
  const inside = (i, j) => i >= box[0] && i <= box[1] && j >= box[2] && j <= box[3];
  return p.allowed.map((_, cell) => (inside(Math.floor(cell / p.k), cell % p.k) ? 1 : 0));
}

// As numpy rounds: a half to the even neighbour.
function roundHalfEven(x) {
  const floor = Math.floor(x), rest = x - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}

// The first tau that takes the block at each place of n sorted ones, and those before it.
function taus(n, rule) {
  const first = new Uint16Array(n).fill(NEVER);
  for (let tau = 1, place = 0; tau <= 1000; tau++) {
    // Of "published" numpy's percentile of tau / 10 percent, "nearest", is the last to go.
    const taken = rule === "published" ? roundHalfEven((n - 1) * (tau / 10 / 100)) + 1 : Math.floor((tau * n) / 1000);
    while (place < Math.min(taken, n)) first[place++] = tau;
  }
  return first;
}

// The smallest tau that prunes each block, in thousandths, or NEVER. A growing tau takes more, never other, blocks.
function goesAt(p, { rule, scope, crop, keepBest }) {
  const candidate = candidatesOf(p, rule, crop), bits = new Uint32Array(p.average.buffer, p.average.byteOffset, p.average.length);
  const goes = new Uint16Array(p.rows * p.k).fill(NEVER);
  const size = { model: p.rows, layer: p.heads * p.q, head: p.q, row: 1 }[scope] * p.k;
  const keys = new Float64Array(size), tables = new Map();
  for (let group = 0; group < goes.length; group += size) {
    let n = 0;
    for (let at = 0, cell = group % p.area; at < size; at++, cell++) {
      if (cell === p.area) cell = 0;
      if (candidate[cell]) keys[n++] = bits[group + at] * PLACES + at;
    }
    if (!tables.has(n)) tables.set(n, taus(n, rule));
    const first = tables.get(n);
    keys.subarray(0, n).sort();
    for (let place = 0, value = -1, tau = NEVER; place < n; place++) {
      const own = Math.floor(keys[place] / PLACES), at = group + keys[place] - own * PLACES, cell = at % p.area;
      if (rule === "allowed" || own !== value) tau = first[place]; // "published" takes equals together
      value = own;
      if (!(p.visible[cell] && !p.allowed[cell]) && !(keepBest && p.best[at])) goes[at] = tau;
    }
  }
  return goes;
}

// ---- How sparse it is, for every tau ----

// From what each tau adds to what there is up to it, as shares of `total`.
function shares(added, total) {
  let sum = 0;
  return added.map((one) => (sum += one) / total);
}

// Pruned allowed cells / allowed cells, of each layer and of all: [tau].
function effectiveSparsity(p, goes) {
  const total = p.cells.reduce((sum, cells) => sum + cells, 0) * p.heads;
  const layers = Array.from({ length: p.layers }, () => new Float64Array(NEVER + 1));
  for (let layer = 0, at = 0; layer < p.layers; layer++) {
    for (let head = 0; head < p.heads; head++) {
      for (let cell = 0; cell < p.area; cell++, at++) layers[layer][goes[at]] += p.cells[cell];
    }
  }
  const all = layers[0].map((_, tau) => layers.reduce((sum, added) => sum + added[tau], 0));
  return { layers: layers.map((added) => shares(added, total)), all: shares(all, total * p.layers) };
}

// Skipped blocks / blocks of `size` cells a side that hold an allowed cell: [tau]. The last visible block goes last.
function blockSparsity(p, goes, size) {
  const ratio = size / p.pool, width = Math.ceil(p.k / ratio);
  const larger = Uint32Array.from({ length: p.area }, (_, cell) =>
    Math.floor(Math.floor(cell / p.k) / ratio) * width + Math.floor((cell % p.k) / ratio));
  const holds = new Uint8Array(Math.ceil(p.q / ratio) * width), last = new Uint16Array(holds.length);
  p.allowed.forEach((one, cell) => (holds[larger[cell]] |= one));
  const added = new Float64Array(NEVER + 1);
  for (let head = 0, at = 0; head < p.layers * p.heads; head++) {
    last.fill(0);
    for (let cell = 0; cell < p.area; cell++, at++) {
      if (p.visible[cell] && goes[at] > last[larger[cell]]) last[larger[cell]] = goes[at];
    }
    for (let block = 0; block < holds.length; block++) added[last[block]] += holds[block];
  }
  return shares(added, holds.reduce((a, b) => a + b, 0) * p.layers * p.heads);
}

// Everything about the masks of a choice of rule, scope, crop and row floor: then a tau is looked up.
function prepare(p, choice) {
  const goes = goesAt(p, choice);
  return { goes, ...effectiveSparsity(p, goes), blocks: p.blockSizes.map((size) => blockSparsity(p, goes, size)) };
}

// ---- Attention by distance ----

// Distances (query minus key; memory slots come before the first query) in blocks: that of a block is its place here.
function distanceOf(p, i, j) {
  const memory = p.causal ? Math.floor((p.keys - p.queries) / p.pool) : 0;
  return i - j + memory;
}

// The mean over the allowed blocks of each distance of each head, NaN where there is none: from the distance `first` on.
function byDistance(p) {
  const distances = Int32Array.from(p.allowed, (_, cell) => distanceOf(p, Math.floor(cell / p.k), cell % p.k));
  let first = Infinity, last = -Infinity;
  p.allowed.forEach((one, cell) => {
    if (one) [first, last] = [Math.min(first, distances[cell]), Math.max(last, distances[cell])];
  });
  const length = last - first + 1, blocks = new Uint32Array(length);
  p.allowed.forEach((one, cell) => one && (blocks[distances[cell] - first] += 1));
  const means = new Float32Array(p.layers * p.heads * length);
  for (let head = 0, at = 0; head < p.layers * p.heads; head++) {
    const sums = new Float64Array(length);
    for (let cell = 0; cell < p.area; cell++, at++) if (p.allowed[cell]) sums[distances[cell] - first] += p.average[at];
    means.set(sums.map((sum, d) => (blocks[d] ? sum / blocks[d] : NaN)), head * length);
  }
  return { first, length, means };
}
