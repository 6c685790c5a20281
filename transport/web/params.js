// Live parameters: one control per property of a node's JSON Schema.

const DEBOUNCE_MS = 140;
const SEGMENTS_MAX = 10; // more choices than this become a select

// what people reach for first: the picture, then the voice; the rest is there, folded
const RANKS = [/diffusion|restyle/, /^(tts|llm|agent|vlm)\b/];
const rank = ({ use }) => { const at = RANKS.findIndex((r) => r.test(use)); return at < 0 ? RANKS.length : at; };

const words = (name) => name.replaceAll("_", " ");

/** The schema's title as a sentence: pydantic makes "Min Silence" of min_silence. */
function labelOf(name, schema) {
  const [first, ...rest] = (schema.title ?? words(name)).split(" ");
  return [first[0].toUpperCase() + first.slice(1), ...rest.map((w) => (/^[A-Z][a-z]+$/.test(w) ? w.toLowerCase() : w))].join(" ");
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Follow $ref, and take the one real type out of `X | null`. */
function resolve(schema, root) {
  let found = schema;
  if (found.$ref) found = { ...root.$defs?.[found.$ref.split("/").pop()], ...found, $ref: undefined };
  if (found.allOf?.length === 1) found = { ...resolve(found.allOf[0], root), ...found, allOf: undefined };
  const real = found.anyOf?.filter((s) => s.type !== "null") ?? [];
  if (real.length === 1) found = { ...resolve(real[0], root), ...found, anyOf: undefined };
  return found;
}

function bounds(schema) {
  const whole = schema.type === "integer";
  const low = schema.minimum ?? schema.exclusiveMinimum;
  const high = schema.maximum ?? schema.exclusiveMaximum;
  const step = schema.multipleOf ?? (whole ? 1 : high !== undefined && low !== undefined ? stepOf(high - low) : "any");
  const open = (edge) => (edge !== undefined && step !== "any" ? step : 0);
  return {
    low: low === undefined ? undefined : low + open(schema.exclusiveMinimum),
    high: high === undefined ? undefined : high - open(schema.exclusiveMaximum),
    step,
  };
}

const stepOf = (range) => 10 ** Math.floor(Math.log10(range / 50 || 0.01)); // about a hundred stops
const shown = (value, step) => (step === "any" || Number.isInteger(step) ? String(value)
  : Number(value).toFixed(Math.min(4, Math.max(0, Math.ceil(-Math.log10(step))))));

/** Each maker returns {element, set(value), wide}; `send` gives a new value on. */
const makers = {
  choice(schema, id, send, name) {
    const values = schema.enum;
    if (values.length > SEGMENTS_MAX) {
      const select = make("select", { id, className: "field" }, ...values.map((v) => make("option", { value: String(v) }, words(String(v)))));
      select.onchange = () => send(values[select.selectedIndex]);
      return { element: select, set: (v) => { select.selectedIndex = values.indexOf(v); } };
    }
    const inputs = values.map((v) => {
      const input = make("input", { type: "radio", name: id, value: String(v) });
      input.onchange = () => send(v);
      return input;
    });
    const element = make("div", { className: "segments field", role: "radiogroup", "aria-label": name },
      ...inputs.map((input, i) => make("label", {}, input, make("span", {}, words(String(values[i]))))));
    return { element, set: (v) => inputs.forEach((input, i) => { input.checked = values[i] === v; }), group: true };
  },

  flag(schema, id, send) {
    const input = make("input", { type: "checkbox", id });
    input.onchange = () => send(input.checked);
    return { element: make("span", { className: "switch" }, input), set: (v) => { input.checked = Boolean(v); }, inline: true };
  },

  slider(schema, id, send) {
    const { low, high, step } = bounds(schema);
    const input = make("input", { type: "range", id, className: "field" });
    Object.assign(input, { min: low, max: high, step });
    const output = make("output", { htmlFor: id });
    const paint = () => {
      output.textContent = shown(input.value, step);
      input.style.setProperty("--fill", `${(100 * (input.value - low)) / (high - low || 1)}%`);
    };
    input.oninput = () => { paint(); send(Number(input.value)); };
    return { element: input, output, set: (v) => { input.value = v; paint(); }, busy: () => input.matches(":active") };
  },

  number(schema, id, send) {
    const { low, high, step } = bounds(schema);
    const input = make("input", { type: "number", id, className: "field", step: String(step) });
    if (low !== undefined) input.min = low;
    if (high !== undefined) input.max = high;
    input.onchange = () => { if (input.value !== "" && input.checkValidity()) send(Number(input.value)); else input.reportValidity(); };
    return { element: input, set: (v) => { input.value = v ?? ""; }, busy: () => document.activeElement === input };
  },

  text(schema, id, send) {
    const input = make("input", { type: "text", id, className: "field", spellcheck: false });
    if (schema.maxLength) input.maxLength = schema.maxLength;
    input.oninput = () => send(input.value);
    return { element: input, set: (v) => { input.value = v ?? ""; }, busy: () => document.activeElement === input };
  },
};

function makerOf(schema) {
  if (schema.const !== undefined) return null; // nothing to choose
  if (schema.enum) return makers.choice;
  if (schema.type === "boolean") return makers.flag;
  if (schema.type === "number" || schema.type === "integer") {
    const { low, high } = bounds(schema);
    return low !== undefined && high !== undefined ? makers.slider : makers.number;
  }
  return schema.type === "string" ? makers.text : null;
}

export class Params {
  #root = document.getElementById("params");
  #controls = new Map(); // "node/param" -> control
  #timers = new Map();
  #send;

  /** `send(node, values)` is called at most every DEBOUNCE_MS for one parameter. */
  constructor(send) {
    this.#send = send;
    this.clear("The graph's live parameters, once connected.");
  }

  clear(text) {
    for (const timer of this.#timers.values()) clearTimeout(timer);
    this.#controls.clear();
    this.#root.replaceChildren(make("p", { className: "quiet empty" }, text));
  }

  build(nodes) {
    this.clear("This graph has no live parameters.");
    const sets = nodes.toSorted((a, b) => rank(a) - rank(b)).map((node) => this.#node(node)).filter(Boolean);
    if (sets.length && sets.every((set) => !set.open)) sets[0].open = true;
    if (sets.length) this.#root.replaceChildren(...sets);
  }

  /** Someone (the agent, another client) changed them: show it, but not under the user's fingers. */
  update(node, values) {
    for (const [name, value] of Object.entries(values ?? {})) {
      const control = this.#controls.get(`${node}/${name}`);
      if (control && !control.busy?.()) control.set(value);
    }
  }

  #node(node) {
    const properties = Object.entries(node.schema?.properties ?? {});
    const rows = properties.map(([name, schema]) => this.#row(node, name, resolve(schema, node.schema))).filter(Boolean);
    if (!rows.length) return null;
    return make("details", { className: "node", open: rank(node) < RANKS.length },
      make("summary", {}, node.name, make("small", {}, node.use)), ...rows);
  }

  #row(node, name, schema) {
    const maker = makerOf(schema);
    if (!maker) return null;
    const key = `${node.name}/${name}`;
    const id = `param-${node.name}-${name}`;
    const control = maker(schema, id, (value) => this.#later(key, node.name, name, value), `${node.name} ${labelOf(name, schema)}`);
    this.#controls.set(key, control);
    control.set(node.params?.[name] ?? schema.default);
    const label = make(control.group ? "span" : "label", { className: "name" }, labelOf(name, schema));
    if (!control.group) label.htmlFor = id;
    if (schema.description) label.title = schema.description;
    const beside = control.inline ? control.element : control.output ?? "";
    return make("div", { className: "param" }, label, beside, ...(control.inline ? [] : [control.element]));
  }

  #later(key, node, name, value) {
    clearTimeout(this.#timers.get(key));
    this.#timers.set(key, setTimeout(() => this.#send(node, { [name]: value }), DEBOUNCE_MS));
  }
}
