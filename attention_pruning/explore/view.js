"use strict";
// Draws what rule.js computes, and listens to the reader.

// Ten colours of viridis, from low to high; those between lie on straight lines.
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
// Most powers of ten of a log scale, and the shares of numbers below and above it: of the colours, where a few extremes
// would leave one hue for all others, and of curves.
const COLOURS = { decades: 3, below: 0.01, above: 0.002 };
const CURVES = { decades: 5, below: 0, above: 0 };
const element = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const short = (x) => (x === 0 ? "0" : x >= 0.001 ? x.toPrecision(3) : x.toExponential(2));

const panels = [];
const chosen = { layer: 0, head: 0, cell: null };
let scale, curveScale, colours; // scales are those of all patterns of the page, so that they can be compared

// ---- Colours ----

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
const mixed = (from, to, share) => from.map((x, i) => Math.round(x + share * (to[i] - x)));
const packed = ([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0; // as canvases keep them

const unpacked = (colour) => [colour & 255, (colour >> 8) & 255, (colour >> 16) & 255];

// The colour of a place on the scale, from 0 to 1.
function viridis(place) {
  const at = Math.min(place * (VIRIDIS.length - 1), VIRIDIS.length - 1.000001);
  return mixed(channels(VIRIDIS[Math.floor(at)]), channels(VIRIDIS[Math.floor(at) + 1]), at % 1);
}

function themeColours() {
  const style = getComputedStyle(document.documentElement);
  const named = (name) => channels(style.getPropertyValue(name).trim());
  const averages = Uint32Array.from({ length: 256 }, (_, level) => packed(viridis(level / 255)));
  return { averages, pruned: named("--pruned"), unobserved: packed(named("--unobserved")) };
}

// The ends of a log scale for the positive numbers of some Float32Arrays.
function logScale(lists, { decades, below, above }) {
  const counts = new Uint32Array(1 << 16);
  for (const numbers of lists) {
    const bits = new Uint32Array(numbers.buffer, numbers.byteOffset, numbers.length);
    bits.forEach((one, at) => numbers[at] > 0 && counts[one >>> DROPPED_BITS]++);
  }
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (!total) return { low: 0.1, high: 1 };
  let [first, last] = [0, counts.length - 1];
  for (let left = below * total; left >= counts[first]; first++) left -= counts[first];
  for (let left = above * total; left >= counts[last]; last--) left -= counts[last];
  const [low, high] = floatsOf([first, last + 1]);
  return { low: Math.min(Math.max(low, high / 10 ** decades), high / 10), high };
}

const placeOn = ({ low, high }, x) => Math.min(Math.max(Math.log(x / low) / Math.log(high / low), 0), 1);

// ---- The mask ----

function asked() {
  return {
    shown: element("shown").value,
    rule: element("rule").value,
    scope: element("scope").value,
    crop: element("crop").checked,
    keepBest: element("keep-best").checked,
    tau: Number(element("tau").value),
  };
}

// What is known of all masks of a choice: only the last choice is kept.
function preparedFor(panel, { rule, scope, crop, keepBest }) {
  const key = `${rule} ${scope} ${rule === "published" && crop} ${keepBest}`;
  if (panel.preparedKey !== key) {
    panel.prepared = prepare(panel.p, { rule, scope, crop, keepBest });
    panel.preparedKey = key;
  }
  return panel.prepared;
}

// The mask that is shown and its sparsities; null where nothing is pruned.
function remask(panel, now) {
  panel.mask = null;
  if (now.shown === "file") panel.mask = panel.p.mask;
  if (now.shown !== "tau") return;
  const { goes, all, layers, blocks } = preparedFor(panel, now), at = (shares) => shares[now.tau];
  panel.mask = { goes, tau: now.tau, effective: at(all), layers: layers.map(at), blocks: blocks.map(at) };
}

// The pruned share of a block in 255ths.
function gone({ p, mask }, at) {
  if (!mask) return 0;
  if (mask.goes) return mask.goes[at] <= mask.tau ? 255 : 0;
  return p.share[at];
}

// ---- Pictures ----

// The colour of every block that is kept; 0, which is transparent, where the structure shows nothing.
function baseColours(p) {
  return Uint32Array.from(p.average, (x, at) => {
    const cell = at % p.area;
    if (!p.allowed[cell]) return p.visible[cell] ? colours.unobserved : 0;
    return colours.averages[x > 0 ? Math.round(255 * placeOn(scale, x)) : 0];
  });
}

function drawHead(panel, head, canvas) {
  const { p, base, pixels } = panel, pruned = packed(colours.pruned);
  for (let cell = 0, at = head * p.area; cell < p.area; cell++, at++) {
    const colour = base[at], share = colour ? gone(panel, at) : 0;
    if (share === 0 || share === 255) pixels[cell] = share ? pruned : colour;
    else pixels[cell] = packed(mixed(unpacked(colour), colours.pruned, share / 255));
  }
  canvas.getContext("2d").putImageData(panel.image, 0, 0);
}

function drawGrid(panel) {
  panel.canvases.forEach((canvas, head) => drawHead(panel, head, canvas));
  panel.rowLabels.forEach((label, layer) => {
    label.textContent = panel.mask ? `${layer} · ${Math.round(100 * panel.mask.layers[layer])} %` : `${layer}`;
  });
}

// Terms and their values, as the children of a list.
function list(pairs) {
  return pairs.map(([term, value]) => {
    const [pair, dt, dd] = ["div", "dt", "dd"].map((kind) => document.createElement(kind));
    [dt.textContent, dd.textContent] = [term, value];
    pair.append(dt, dd);
    return pair;
  });
}

function drawStats(panel) {
  const { p, n, mask } = panel;
  const blocks = p.blockSizes.map((size, i) => [`block sparsity, ${size}`, mask ? percent(mask.blocks[i]) : "–"]);
  const pairs = [["effective sparsity", mask ? percent(mask.effective) : "–"], ...blocks];
  if (mask && mask.kind) pairs.push(["mask", `${mask.kind}, tau ${mask.tau}, ${mask.rule ? `${mask.rule}, by ${mask.scope}` : "no rule"}`]);
  element(`stats-${n}`).replaceChildren(...list(pairs));
}

// ---- Attention by distance ----

const headIndex = (p) => chosen.layer * p.heads + chosen.head;

function curvePath(curves, head) {
  let path = "", pen = "M";
  for (let d = 0; d < curves.length; d++) {
    const mean = curves.means[head * curves.length + d];
    if (!(mean > 0)) {
      pen = "M";
      continue;
    }
    const x = (600 * (d + 0.5)) / curves.length;
    const y = 175 - 170 * placeOn(curveScale, mean);
    path += `${pen}${x.toFixed(1)} ${y.toFixed(1)}${pen === "M" ? "h0.1" : ""}`;
    pen = "L";
  }
  return path;
}

function drawChart(panel) {
  const { p, n, curves } = panel;
  const order = [...Array(p.heads).keys()].sort((a, b) => (a === chosen.head) - (b === chosen.head));
  const zero = (600 * (0.5 - curves.first)) / curves.length; // where two-sided attention looks at its own position
  element(`chart-${n}`).innerHTML = `<path class="zero" d="M${zero.toFixed(1)} 0V180"></path>` + order
    .map((head) => {
      const path = curvePath(curves, chosen.layer * p.heads + head);
      return `<path d="${path}"${head === chosen.head ? ' class="chosen"' : ""}></path>`;
    })
    .join("");
  element(`top-${n}`).textContent = short(curveScale.high);
  element(`bottom-${n}`).textContent = short(curveScale.low);
  element(`left-${n}`).textContent = curves.first * p.pool;
  element(`right-${n}`).textContent = (curves.first + curves.length - 1) * p.pool;
}

// ---- The cell pointed at ----

// Positions of a block: one number, or the first and the last.
function span(block, pool, length) {
  const last = Math.min((block + 1) * pool, length) - 1;
  return pool === 1 ? `${block}` : `${block * pool} to ${last}`;
}

function cellFacts(panel, i, j) {
  const { p } = panel;
  const cell = i * p.k + j, at = headIndex(p) * p.area + cell;
  const place = [["query", span(i, p.pool, p.queries)], ["key", span(j, p.pool, p.keys)], ["distance", `${distanceOf(p, i, j) * p.pool}`]];
  if (!p.visible[cell]) return [...place, ["mask", "not visible"]];
  const share = gone(panel, at) / 255;
  const what = share === 1 ? "pruned" : share ? `${percent(share)} pruned` : "kept";
  if (!p.allowed[cell]) return [...place, ["mask", `never observed, ${what}`]];
  return [...place, ["average", short(p.average[at])], ["count", `${p.seen[cell]}`], ["mask", what]];
}

function drawCell(panel) {
  const { p, n } = panel;
  const cross = element(`cross-${n}`), facts = element(`cell-${n}`);
  const inside = chosen.cell && chosen.cell[0] < p.queries && chosen.cell[1] < p.keys;
  cross.hidden = !inside;
  if (!inside) return facts.replaceChildren("Point at a cell of the map, or tab to it and use the arrow keys.");
  const [i, j] = chosen.cell.map((position) => Math.floor(position / p.pool));
  Object.assign(cross.style, {
    left: `${(100 * j) / p.k}%`, top: `${(100 * i) / p.q}%`, width: `${100 / p.k}%`, height: `${100 / p.q}%`,
  });
  facts.replaceChildren(...list(cellFacts(panel, i, j)));
}

// ---- What the reader does ----

function drawChosen(panel) {
  const { p, n } = panel;
  element(`chosen-${n}`).textContent = `Layer ${chosen.layer}, head ${chosen.head}`;
  panel.buttons.forEach((button, head) => {
    button.setAttribute("aria-pressed", head === headIndex(p));
    button.tabIndex = head === headIndex(p) ? 0 : -1;
  });
  drawHead(panel, headIndex(p), element(`map-${n}`));
  drawChart(panel);
  drawCell(panel);
}

function update() {
  const now = asked();
  element("tau-value").textContent = now.shown === "tau" ? (now.tau / 1000).toFixed(3) : "–";
  element("crop").disabled = now.rule === "allowed";
  element("choice").textContent = now.shown === "tau" ? `${now.rule}, by ${now.scope}` : element("shown").selectedOptions[0].textContent;
  for (const panel of panels) {
    remask(panel, now);
    drawGrid(panel);
    drawStats(panel);
    drawChosen(panel);
  }
}

// However fast the slider moves, the page is drawn once a frame.
let waiting = false;
function updateSoon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    update();
  });
}

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const within = (x, length) => Math.min(Math.max(x, 0), length - 1);

function choose(layer, head) {
  Object.assign(chosen, { layer, head });
  panels.forEach(drawChosen);
}

function chooseCell(query, key) {
  chosen.cell = [query, key];
  panels.forEach(drawCell);
}

function moveHead(panel, event) {
  const step = STEPS[event.key];
  if (!step) return;
  event.preventDefault();
  choose(within(chosen.layer + step[0], panel.p.layers), within(chosen.head + step[1], panel.p.heads));
  panel.buttons[headIndex(panel.p)].focus();
}

function moveCell({ p }, event) {
  const step = STEPS[event.key];
  if (!step) return;
  event.preventDefault();
  const [query, key] = chosen.cell || [0, 0];
  chooseCell(within(query + step[0] * p.pool, p.queries), within(key + step[1] * p.pool, p.keys));
}

function pointAt({ p }, event) {
  const box = event.currentTarget.getBoundingClientRect();
  const query = Math.floor(((event.clientY - box.top) / box.height) * p.q) * p.pool;
  const key = Math.floor(((event.clientX - box.left) / box.width) * p.k) * p.pool;
  chooseCell(within(query, p.queries), within(key, p.keys));
}

// ---- The page as it opens ----

function label(text, kind) {
  const span = document.createElement("span");
  span.textContent = text;
  span.className = kind;
  return span;
}

function headButton(panel, layer, head) {
  const button = document.createElement("button"), canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [panel.p.k, panel.p.q];
  button.type = "button";
  button.setAttribute("aria-label", `layer ${layer}, head ${head}`);
  button.append(canvas);
  button.addEventListener("click", () => choose(layer, head));
  panel.buttons.push(button);
  panel.canvases.push(canvas);
  return button;
}

function buildGrid(panel) {
  const { p, n } = panel;
  const grid = element(`grid-${n}`);
  grid.style.gridTemplateColumns = `max-content repeat(${p.heads}, minmax(1.2rem, 7rem))`;
  grid.classList.toggle("enlarged", Math.max(p.q, p.k) < 100);
  grid.append(label("layer,\npruned", ""), ...Array.from({ length: p.heads }, (_, head) => label(head, "column")));
  for (let layer = 0; layer < p.layers; layer++) {
    panel.rowLabels.push(label(layer, ""));
    grid.append(panel.rowLabels[layer], ...Array.from({ length: p.heads }, (_, head) => headButton(panel, layer, head)));
  }
  grid.addEventListener("keydown", (event) => moveHead(panel, event));
}

function buildPanel(p, n) {
  const panel = { p, n, buttons: [], canvases: [], rowLabels: [], curves: byDistance(p), base: baseColours(p) };
  buildGrid(panel);
  const map = element(`map-${n}`);
  [map.width, map.height] = [p.k, p.q];
  panel.image = map.getContext("2d").createImageData(p.k, p.q);
  panel.pixels = new Uint32Array(panel.image.data.buffer);
  for (const kind of ["pointermove", "pointerdown"]) map.addEventListener(kind, (event) => pointAt(panel, event));
  map.addEventListener("keydown", (event) => moveCell(panel, event));
  return panel;
}

function readPatterns() {
  const patterns = [];
  for (let n = 0; element(`header-${n}`); n++) {
    patterns.push(decode(JSON.parse(element(`header-${n}`).textContent), element(`data-${n}`).textContent));
  }
  return patterns;
}

function showScale() {
  element("scale").style.background = `linear-gradient(to right, ${VIRIDIS.join(", ")})`;
  element("scale-low").textContent = `≤ ${short(scale.low)}`;
  element("scale-high").textContent = `≥ ${short(scale.high)}`;
}

// A mask of a file is shown first, and the controls say how it was made.
function startFrom(mask) {
  if (!mask) return;
  element("shown").value = "file";
  if (!mask.rule) return;
  element("tau").value = Math.round(mask.tau * 1000);
  element("rule").value = mask.rule;
  element("scope").value = mask.scope;
  element("crop").checked = mask.crop;
  element("keep-best").checked = mask.row_floor === "keep-best";
}

function listen() {
  element("controls").addEventListener("input", (event) => {
    if (event.target.id !== "shown") element("shown").value = "tau"; // whoever moves the slider wants to see what it does
    updateSoon();
  });
  element("controls").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() === "t" && !event.ctrlKey && !event.metaKey && !event.altKey) element("tau").focus();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    colours = themeColours();
    for (const panel of panels) panel.base = baseColours(panel.p);
    update();
  });
}

function start() {
  const patterns = readPatterns();
  scale = logScale(patterns.map((p) => p.average), COLOURS);
  colours = themeColours();
  panels.push(...patterns.map(buildPanel));
  curveScale = logScale(panels.map((panel) => panel.curves.means), CURVES);
  showScale();
  startFrom(patterns[0].mask);
  element("choices").open = matchMedia("(min-width: 40rem)").matches;
  listen();
  update();
}

start();
