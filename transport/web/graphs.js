// Which graph to run: the picker, and what it says of the chosen one.

import { call } from "./rtc.js";

const $ = (id) => document.getElementById(id);

export class Graphs {
  #listed = [];

  get known() {
    return this.#listed.length > 0;
  }

  get chosen() {
    return $("graph").value;
  }

  /** Fill the picker. Raises: LinkError. */
  async list({ token, wanted }) {
    ({ graphs: this.#listed } = await call("graphs", { token }));
    $("graph").replaceChildren(...this.#listed.map(({ name, title }) => new Option(title || name, name)));
    const named = (test) => this.#listed.find(test);
    const first = named(({ name }) => name === wanted) ?? named((graph) => graph.default) ?? this.#listed[0];
    if (first) $("graph").value = first.name;
    this.describe();
  }

  describe() {
    const graph = this.#listed.find(({ name }) => name === this.chosen);
    $("graph-title").textContent = graph?.title || graph?.name || "Penstock";
    $("graph-about").textContent = graph?.about || "Speak and show your camera; what this graph makes of it comes back live.";
  }
}
