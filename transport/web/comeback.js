// The way back to a session after its connection was lost, or the page was loaded again in this tab.

const KEY = "penstock.session";
const LINES = 20; // own lines that the server may tell again

const store = {
  get() { try { return JSON.parse(sessionStorage.getItem(KEY)); } catch { return null; } },
  set(value) { try { sessionStorage.setItem(KEY, JSON.stringify(value)); } catch { /* private mode */ } },
  clear() { try { sessionStorage.removeItem(KEY); } catch { /* private mode */ } },
};

export class Comeback {
  token = null;
  #after = 0;
  #said = [];

  /** {token, after} for the server; undefined when there is no session to come back to. */
  get ticket() {
    return this.token ? { token: this.token, after: this.#after } : undefined;
  }

  /** What the page was doing when it was left: {graph, on}; null when that is nothing, or over. */
  reloaded() {
    const saved = store.get();
    store.clear();
    if (!saved?.token || Date.now() - saved.left > 10_000) return null;
    this.token = saved.token;
    return saved;
  }

  /** The page is being left. */
  leaves(graph, on) {
    if (this.token) store.set({ token: this.token, graph, on, left: Date.now() });
  }

  hello({ resume }) {
    if (resume !== this.token) this.forget();
    this.token = resume ?? null;
  }

  seen(number) {
    if (number) this.#after = Math.max(this.#after, number);
  }

  said(text) {
    this.#said.push(text);
    if (this.#said.length > LINES) this.#said.shift();
  }

  /** Is this line, told again by the server, in the page already? */
  knows(text) {
    const at = this.#said.indexOf(text);
    if (at >= 0) this.#said.splice(at, 1);
    return at >= 0;
  }

  forget() {
    this.token = null;
    this.#after = 0;
    this.#said = [];
    store.clear();
  }
}
