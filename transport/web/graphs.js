// Which graph to run: the picker, and what it says of the chosen one.

import { call } from "./rtc.js";

const DEVICES = { video: "camera", audio: "microphone" };
const $ = (id) => document.getElementById(id);

export class Graphs {
  #listed = [];

  get known() {
    return this.#listed.length > 0;
  }

  get chosen() {
    return $("graph").value;
  }

  /** Does the chosen graph read this kind of media? */
  takes(kind) {
    return (this.#graph?.takes ?? ["audio", "video"]).includes(kind);
  }

  get #graph() {
    return this.#listed.find(({ name }) => name === this.chosen);
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
    const graph = this.#graph;
    const taken = Object.keys(DEVICES).filter((kind) => this.takes(kind)).map((kind) => DEVICES[kind]);
    $("graph-title").textContent = graph?.title || graph?.name || "Penstock";
    $("graph-about").textContent = graph?.error
      ? `This could not start when the server last tried: ${graph.error}`
      : graph?.about || "What this graph makes of what you give it comes back live.";
    $("goes-where").textContent = taken.length
      ? `Your ${taken.join(" and ")} ${taken.length > 1 ? "go" : "goes"} to this server and nowhere else.`
      : "Neither your camera nor your microphone is used.";
    $("start-quiet").hidden = !taken.length;
  }
}
