// Which graph to run: the picker, and what it says of the chosen one.

import { call } from "./rtc.js";
import { note } from "./shell.js";

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

  /** Does the chosen graph read this of its client: "audio", "video" or "text"? */
  takes(kind) {
    return (this.#graph?.takes ?? ["audio", "video"]).includes(kind);
  }

  /** Does it send this? */
  gives(kind) {
    return (this.#graph?.gives ?? []).includes(kind);
  }

  /** Does it send what it hears as text? */
  get captions() {
    return Boolean(this.#graph?.captions);
  }

  get #graph() {
    return this.#listed.find(({ name }) => name === this.chosen);
  }

  /** Fill the picker. Raises: LinkError. */
  async list({ token, wanted }) {
    ({ graphs: this.#listed } = await call("graphs", { token }));
    $("graph").replaceChildren(...this.#listed.map(({ name, title }) => new Option(title || name, name)));
    const named = (test) => this.#listed.find(test);
    const asked = named(({ name }) => name === wanted);
    if (wanted && !asked) {
      note(`There is no graph ${JSON.stringify(wanted.slice(0, 60))} here; this server has: ${this.#listed.map(({ name }) => name).join(", ")}.`);
    }
    const first = asked ?? named((graph) => graph.default) ?? this.#listed[0];
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
    $("start-quiet").hidden = !taken.length || !this.takes("text");
    // nothing is offered that nobody would read
    $("chat").hidden = $("skip").hidden = !this.takes("text");
    $("talk-card").hidden = !this.takes("text") && !this.gives("text");
    $("captions").hidden = !this.captions;
    $("talk-what").textContent = !this.takes("text") ? "What it hears and says is kept here while you are connected."
      : this.captions ? "What you say and what it answers is kept here while you are connected."
      : this.gives("text") ? "What you write and what it answers is kept here while you are connected."
      : "What you write is kept here while you are connected.";
  }
}
