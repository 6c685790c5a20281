// The strip of live figures: one card a stage, in the graph's order, and one for this page.

const POINTS = 40; // of the age line: 20 s at two a second
const round = (value, digits = 0) => (Number.isFinite(value) ? value.toFixed(digits) : "–");
const many = (value) => (!Number.isFinite(value) ? "–" : value >= 10000 ? `${Math.round(value / 1000)}k` : String(value));

const TONES = { running: "good", ok: "good", degraded: "warn", restarting: "warn", starting: "warn", stalled: "bad", failed: "bad", error: "bad" };
const CELLS = [
  ["fps", "fps", "frames a second"],
  ["age", "age", "ms since capture, mean"],
  ["drops", "drops", "frames lost to a full queue"],
  ["late", "late", "frames past their deadline"],
];

class Card {
  element = document.createElement("li");
  #cells = {};
  #line;
  #dot;
  #ages = [];

  constructor(name, title) {
    this.element.className = "stage";
    this.element.dataset.node = name;
    const head = document.createElement("h3");
    this.#dot = document.createElement("span");
    this.#dot.className = "dot";
    const label = document.createElement("span");
    label.textContent = name;
    head.append(this.#dot, label);
    head.title = title;
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 100 18");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    this.#line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    this.#line.setAttribute("vector-effect", "non-scaling-stroke");
    svg.append(this.#line);
    const list = document.createElement("dl");
    for (const [key, term, meaning] of CELLS) {
      const pair = document.createElement("div");
      const dt = document.createElement("dt");
      const dd = document.createElement("dd");
      dt.textContent = term;
      pair.title = meaning;
      pair.append(dt, dd);
      list.append(pair);
      this.#cells[key] = dd;
    }
    this.element.append(head, svg, list);
    this.show({});
  }

  show({ fps, age_ms: age, age_p95_ms: p95, drops, late, state, busy_pct: busy, level = 0, levels = 0, about }) {
    this.#cells.fps.textContent = round(fps, fps < 10 ? 1 : 0);
    this.#cells.age.textContent = round(age);
    this.#cells.drops.textContent = many(drops);
    this.#cells.late.textContent = many(late);
    for (const key of ["drops", "late"]) {
      const value = key === "drops" ? drops : late;
      this.#cells[key].className = value > 0 ? "hot" : "zero";
    }
    if (!about) this.#cells.age.parentElement.title = `ms since capture, mean; 95 in 100 are under ${round(p95)}`;
    const word = level > 0 && TONES[state] === "good" ? "degraded" : state ?? "idle";
    if (about || levels > 0) this.element.title = about ?? `quality: ${level ? `rung ${level} of ${levels} down its ladder` : "full"}`;
    this.element.dataset.tone = fps > 0 || TONES[word] !== "good" ? TONES[word] ?? "calm" : "calm";
    this.#dot.title = busy === undefined ? word : `${word}, busy ${round(busy)} % of the time`;
    this.#dot.setAttribute("role", "img");
    this.#dot.setAttribute("aria-label", word);
    if (Number.isFinite(age)) this.#draw(age);
  }

  #draw(age) {
    this.#ages.push(age);
    if (this.#ages.length > POINTS) this.#ages.shift();
    const top = Math.max(20, ...this.#ages) * 1.1;
    const x0 = POINTS - this.#ages.length;
    this.#line.setAttribute("points", this.#ages
      .map((a, i) => `${(((x0 + i) * 100) / (POINTS - 1)).toFixed(1)},${(17 - (a / top) * 16).toFixed(1)}`).join(" "));
  }
}

export class Figures {
  #list = document.getElementById("figures");
  #empty = this.#list.firstElementChild;
  #cards = new Map();
  #last = {};
  #pools = new Map(); // by name, what was done at the last reading

  build(nodes) {
    this.#last = {};
    this.#pools.clear();
    this.#cards = new Map(nodes.map(({ name, use }) => [name, new Card(name, use)]));
    const here = new Card("page", "what this browser shows: received frames, ms in its jitter buffer, packets lost");
    this.#cards.set("\0page", here);
    this.#list.style.setProperty("--cards", this.#cards.size);
    this.#list.replaceChildren(...[...this.#cards.values()].map((card) => card.element));
  }

  clear() {
    this.#cards.clear();
    this.#list.style.removeProperty("--cards");
    this.#list.replaceChildren(this.#empty);
  }

  show(stats) {
    for (const node of stats.nodes ?? []) this.#cards.get(node.name)?.show(node);
    for (const [name, pool] of Object.entries(stats.pools ?? {})) this.#pool(name, pool);
  }

  /** A pool's card comes with its first row: rows of all sessions, their forwards, what missed. */
  #pool(name, { rows, rows_per_forward: batch, forward_ms: ms, utilisation, admitted, waiting }) {
    const key = `\0pool ${name}`;
    const done = rows.done;
    if (!this.#cards.has(key)) {
      if (!done) return;
      const card = new Card(`pool ${name}`, "rows a second of all sessions, ms a forward, rows failed, rows too late");
      this.#cards.set(key, card);
      this.#list.style.setProperty("--cards", this.#cards.size);
      this.#list.append(card.element);
    }
    const now = performance.now();
    const before = this.#pools.get(name) ?? { done, at: now - 1000 };
    this.#pools.set(name, { done, at: now });
    this.#cards.get(key).show({
      fps: ((done - before.done) * 1000) / Math.max(now - before.at, 1),
      age_ms: ms, drops: rows.failed, late: rows.missed, busy_pct: utilisation * 100,
      state: done > before.done ? "running" : "idle",
      about: `${round(batch, 1)} rows a forward, ${round(utilisation * 100)} % busy, ${round(admitted * 100)} % promised, ${waiting} waiting`,
    });
  }

  /** `received()` of the link; the buffer's delay is the mean since the call before. */
  page({ fps, emitted = 0, delay_s: delay = 0, lost = 0 }) {
    const before = this.#last;
    this.#last = { emitted, delay, lost };
    const frames = emitted - (before.emitted ?? emitted);
    const age = frames > 0 ? ((delay - before.delay) * 1000) / frames : NaN;
    this.#cards.get("\0page")?.show({ fps, age_ms: age, drops: lost, late: 0, state: fps > 0 ? "running" : "idle" });
  }
}
