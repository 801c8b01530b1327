// What each page shows of its figures: a function from plain values to elements.

import { bytes, columns, count, distances, element, figure, lines, percent, seconds, table, tiles, timeline } from "./draw.js";

const VERDICTS = { simple: 2, irreducible: 4, "boundary-reducible": 5, splits: 3, undecided: 1 };
const HISTORY = 120;
const meter = (share) => element("meter", { min: 0, max: 1, value: Number.isFinite(share) ? share : 0 });

// -- serving -----------------------------------------------------------------------------------------

const past = [];

function rates(now) {
  past.push({ at: performance.now() / 1000, totals: now.totals, latency: now.latency });
  if (past.length > HISTORY) past.shift();
  const last = past.at(-1).at;
  const steps = past.slice(1).map((each, i) => [each, past[i]]);
  const curve = (name) => steps.map(([b, a]) => [b.at - last, Math.max(0, (b.totals[name] - a.totals[name]) / Math.max(b.at - a.at, 0.05))]);
  return { tokens: curve("generated_tokens"), loaded: curve("pool_loaded_blocks"), saved: curve("pool_saved_blocks") };
}

const mean = ({ sum, count: many }) => (many ? sum / many : null);

export function serving(now) {
  const { totals, engines, nodes, latency } = now;
  const curves = rates(now);
  const used = totals.kv_blocks_total - totals.kv_blocks_free;
  const block = now.model.kv_token_bytes * 16;
  const disk = nodes.reduce((sum, node) => sum + node.on_disk, 0);
  const pooled = nodes.reduce((sum, node) => sum + node.blocks, 0);
  return [
    element("h1", {}, "Workers and KV pool"),
    element("p", { class: "about" }, `${now.model.id}, ${now.model.quant}, ${now.attention} attention`),
    tiles([
      ["running", totals.running, `${totals.waiting} waiting`],
      ["first token, mean", seconds(mean(latency.ttft))],
      ["between tokens, mean", seconds(mean(latency.itl))],
      ["generated", count(totals.generated_tokens), "tokens"],
      ["prefix hits", percent(totals.prefix_hit_tokens, totals.prefix_query_tokens), "of prompt tokens"],
      ["drafts accepted", percent(totals.accepted_tokens, totals.draft_tokens)],
    ]),
    element("h2", {}, "Where the blocks are"),
    tiles([
      ["on engines", count(used), `of ${count(totals.kv_blocks_total)}, ${bytes(used * block)}`],
      ["kept for reuse", count(totals.kv_blocks_cached), "blocks"],
      ["in the pool's memory", count(pooled), "blocks"],
      ["on the pool's disk", count(disk), "blocks"],
      ["sessions", totals.sessions, bytes(totals.session_bytes_parked)],
    ]),
    element("div", { class: "two" },
      figure("tokens per second", lines("Tokens per second over time", [{ points: curves.tokens, colour: 0 }], { from: 0 })),
      figure("blocks moved per second", lines("Blocks moved per second over time", [{ points: curves.loaded, colour: 0 }, { points: curves.saved, colour: 1 }], { from: 0 }), [["from the pool", 0], ["to the pool", 1]])),
    element("h2", {}, "Engines"),
    table(["engine", "role", "running", "waiting", "prefill queue", "KV used", "hits", "from pool", "to pool", "generated"], engines.map((each) => [
      `${each.number}${each.usable ? "" : " (away)"}`, each.role, each.running, each.waiting, each.queued_tokens,
      meter(1 - each.kv_blocks_free / Math.max(each.kv_blocks_total, 1)), percent(each.prefix_hit_tokens, each.prefix_query_tokens),
      count(each.pool_loaded_blocks), count(each.pool_saved_blocks), count(each.generated_tokens)]), "Engines"),
    ...(nodes.length ? [element("h2", {}, "Pool nodes"), table(["node", "blocks", "full", "memory", "on disk", "hits", "evicted"], nodes.map((node) => (node.answers
      ? [node.address.split("/").at(-1), count(node.blocks), meter(node.blocks / Math.max(node.slots, 1)), bytes(node.blocks * node.slot_bytes), count(node.on_disk), percent(node.hits, node.hits + node.misses), count(node.evicted)]
      : [node.address.split("/").at(-1), "away", "", "", "", "", ""])), "Pool nodes")] : []),
  ];
}

// -- rollout and training ----------------------------------------------------------------------------

export function rollout(now) {
  return [
    element("h1", {}, "Rollout"),
    element("p", { class: "about" }, `${now.policy} on ${now.engines} engines, ${now.over ? "complete" : "running"}`),
    tiles([
      ["responses", `${now.done}`, `of ${now.responses}, ${now.groups} groups`],
      ["tokens", count(now.tokens), `${count(now.tokens / Math.max(now.seconds, 1e-9))}/s`],
      ["chunks", count(now.chunks)],
      ["time", seconds(now.seconds)],
      ["tail, last tenth", seconds(now.tail_seconds), now.tail_seconds == null ? "" : percent(now.tail_seconds, now.seconds)],
      ["drafts accepted", percent(now.accepted, now.drafted), `of ${count(now.drafted)}`],
    ]),
    element("h2", {}, "Chunks"),
    figure("a bar per chunk, a colour per group", timeline("Chunks by engine over time", now.engines, now.bars, now.seconds)),
    element("div", { class: "two" },
      figure("responses that are not complete", lines("Responses left over time", [{ points: now.left, colour: 0 }], { from: 0, whole: !now.running.length })),
      now.running.length ? table(["longest that run", "tokens", "since"], now.running.map(([group, index, tokens, since]) => [`group ${group}, ${index}`, count(tokens), seconds(since)]), "Longest responses") : null),
  ];
}

export function training(now) {
  const curve = (name) => now.steps.filter((step) => step[name] != null).map((step) => [step.step, step[name]]);
  const last = (name) => curve(name).at(-1)?.[1];
  const share = (value) => (value == null ? "–" : percent(value, 1));
  return [
    element("h1", {}, "Training"),
    element("p", { class: "about" }, now.folder),
    tiles([
      ["step", now.steps.at(-1)?.step ?? "–", now.steps.at(-1)?.phase],
      ["reward", last("reward")?.toFixed(3) ?? "–"],
      ["held-out solved", share(last("held_out"))],
      ["loss", last("loss")?.toFixed(4) ?? "–"],
      ["a step takes", seconds(last("seconds"))],
    ]),
    element("div", { class: "two" },
      figure("reward and held-out problems solved", lines("Reward over steps", [{ points: curve("reward"), colour: 0 }, { points: curve("held_out"), colour: 1 }], { from: 0, to: 1 }), [["reward", 0], ["held out", 1]]),
      figure("loss", lines("Loss over steps", [{ points: curve("loss"), colour: 2 }]))),
  ];
}

// -- sandboxes and storage ---------------------------------------------------------------------------

export function sandboxes(now) {
  const memory = Object.values(now.memory);
  const sum = (name) => memory.reduce((total, each) => total + each[name], 0);
  const { counters, slots } = now;
  const waiting = Object.entries(slots.waiting);
  return [
    element("h1", {}, "Sandboxes"),
    element("p", { class: "about" }, `${now.url}, driver ${now.driver}`),
    tiles([
      ["slots busy", slots.busy, `of ${slots.most}`],
      ["slots waiting", waiting.reduce((total, [, many]) => total + many, 0), waiting.map(([name, many]) => `${name} ${many}`).join(", ")],
      ["used again", percent(counters.reuse, counters.created), `of ${count(counters.created)} made`],
      ["forks", now.sandboxes.filter((each) => each.parent).length, `${now.snapshots.length} snapshots`],
      ["memory of their own", bytes(sum("own_bytes"))],
      ["memory shared", bytes(sum("shared_bytes"))],
    ]),
    element("h2", {}, "Living"),
    now.sandboxes.length
      ? table(["sandbox", "template", "state", "from", "slot", "age", "memory", "processes", "CPU"], now.sandboxes.map((each) => [each.id, each.template, each.state, each.parent ?? "template", each.slot, seconds(each.seconds), bytes(each.memory_bytes), each.processes, seconds(each.cpu_seconds)]), "Sandboxes")
      : element("p", { class: "about" }, "No sandbox lives at this moment."),
  ];
}

function room(title, figures, body) {
  if (!figures) return [];
  return [element("h2", {}, title), ...(figures.state === "live" ? body(figures) : [element("p", { class: "about" }, figures.why)])];
}

export function storage(now) {
  return [
    element("h1", {}, "Store and vectors"),
    ...room("Store", now.store, (store) => [
      element("p", { class: "about" }, store.path),
      tiles([
        ["structures", store.structures.length],
        ["entries", count(store.structures.reduce((sum, each) => sum + each.entries, 0))],
        ["operations", count(store.applied_lsn)],
        ["durable up to", count(store.durable_lsn)],
        ["on disk", bytes(store.disk_bytes)],
      ]),
      element("h2", {}, "Structures"),
      table(["structure", "kind", "entries"], store.structures.map((each) => [each.name, each.kind, count(each.entries)]), "Structures"),
    ]),
    ...room("Vector index", now.vector, (index) => [
      element("p", { class: "about" }, `${index.url}, ${index.path}`),
      tiles([
        ["rows", count(index.rows), `${index.dim} dimensions, ${index.metric}, ${index.dtype}`],
        ["changes not compacted", count(index.changed + index.gone), `${count(index.changed)} new, ${count(index.gone)} gone`],
        ["queries", count(index.searches.queries), `${(index.searches.requests / Math.max(index.searches.batches, 1)).toFixed(1)} requests a batch`],
        ["changes taken", count(index.changes), `generation ${count(index.generation)}`],
        ["on disk", bytes(index.file_bytes), `log ${bytes(index.log_bytes)}`],
      ]),
    ]),
  ];
}

// -- sequences and topology --------------------------------------------------------------------------

const chosen = { board: null, place: 0, code: null, manifold: null, slopes: null };

export function sequences(now, { ask, redraw }) {
  if (!now.boards.some((board) => board.name === chosen.board)) Object.assign(chosen, { board: now.boards[0]?.name ?? null, place: 0, code: null });
  const board = now.boards.find((each) => each.name === chosen.board);
  if (!board) return [element("h1", {}, "Sequences"), element("p", { class: "about" }, "No code was found yet.")];
  const row = board.best[Math.min(chosen.place, board.best.length - 1)];
  const choose = async (name, place) => {
    Object.assign(chosen, { board: name, place });
    chosen.code = await ask("code", { board: name, place });
    redraw();
  };
  if (chosen.code?.codes.join() !== row.codes.join()) choose(board.name, Math.min(chosen.place, board.best.length - 1));
  const pick = element("select", { id: "board", "aria-label": "Problem", onchange: (event) => choose(event.target.value, 0) },
    ...now.boards.map((each) => element("option", { value: each.name, selected: each === board }, each.name)));
  const curves = (chosen.code?.correlations ?? []).map((values, colour) => ({ points: values.map((value, at) => [at - (values.length - 1) / 2, Math.max(-60, 20 * Math.log10(Math.max(value, 1e-9)))]), colour }));
  return [
    element("h1", {}, "Sequences"),
    element("p", { class: "about" }, "The best codes of each problem, each with a certificate. ", pick),
    table(["place", "value", "code", ""], board.best.map((each, place) => [place + 1, each.exact.length > 18 ? each.value.toPrecision(8) : each.exact, element("span", { class: "mono" }, each.codes.map((code) => (code.length > 40 ? `${code.slice(0, 39)}…` : code)).join(" ")),
      element("button", { type: "button", "aria-pressed": String(place === chosen.place), onclick: () => choose(board.name, place) }, "plot")]), "Leaderboard"),
    element("h2", {}, `Autocorrelation of place ${chosen.place + 1}, dB under the peak`),
    figure("over the delay in symbols", lines("Autocorrelation", curves, { from: -60, to: 0, whole: true })),
  ];
}

export function topology(now, { ask, redraw }) {
  if (!now.last.length) return [element("h1", {}, "Topology"), element("p", { class: "about" }, "No manifold is scanned yet.")];
  const choose = async (isosig) => {
    Object.assign(chosen, { manifold: isosig, slopes: null });
    chosen.slopes = await ask("slopes", { manifold: isosig });
    redraw();
  };
  if (!now.last.some((each) => each.isosig === chosen.manifold)) choose(now.last[0].isosig);
  const { slopes } = chosen;
  const kinds = Object.entries(now.verdicts).map(([name, many]) => [name, many, VERDICTS[name] ?? 1]);
  return [
    element("h1", {}, "Topology"),
    element("p", { class: "about" }, "Handle additions on 3-manifolds: what each slope makes, and how far slopes are from each other."),
    tiles([
      ["manifolds", count(now.manifolds), now.skipped ? `${now.skipped} not certified` : ""],
      ["slopes decided", count(kinds.reduce((sum, [, many]) => sum + many, 0))],
      ["pairs of reducing slopes", count(now.distances.reduce((sum, [, many]) => sum + many, 0))],
      ["largest Δ", now.distances.at(-1)?.[0] ?? "–", `bound ${now.bound}`],
      ["breaches", now.breaches.length],
    ]),
    element("div", { class: "two" },
      figure("verdicts", columns("Verdicts", kinds), kinds.map(([name, , colour]) => [name, colour])),
      slopes
        ? figure(`Δ between slopes; strong lines: ${Math.min(...slopes.distances.flatMap((row, i) => row.slice(0, i)))}, the least`, distances("Graph of distances", slopes.slopes.map((_, i) => String(i)), slopes.slopes.map((slope) => VERDICTS[slope.verdict] ?? 1), slopes.distances), [...new Set(slopes.slopes.map((slope) => slope.verdict))].map((name) => [name, VERDICTS[name] ?? 1]))
        : element("p", { class: "about" }, "Computing the distances…")),
    element("h2", {}, "Manifolds, the last first"),
    table(["manifold", "genus", "slopes", "verdicts", ""], now.last.slice(0, 30).map((each) => [element("span", { class: "mono" }, each.isosig), each.genus, each.slopes, Object.entries(each.verdicts).map(([name, many]) => `${name} ${many}`).join(", "),
      element("button", { type: "button", "aria-pressed": String(each.isosig === chosen.manifold), onclick: () => choose(each.isosig) }, "Δ graph")]), "Manifolds"),
  ];
}
