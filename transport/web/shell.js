// The page's own matters: theme, notes, help, shortcuts, the token in the address.

const byId = (id) => document.getElementById(id);

/** Local settings; a browser that forbids storage just forgets. */
const store = {
  get(key) { try { return localStorage.getItem(`penstock.${key}`); } catch { return null; } },
  set(key, value) { try { localStorage.setItem(`penstock.${key}`, value); } catch { /* private mode */ } },
};

/** `?graph=…` or `#graph=…`: the graph to choose. `#token=…`: taken once, then out of the address bar; kept for a reload of this tab only. */
export function address() {
  const hash = new URLSearchParams(location.hash.slice(1));
  let token = hash.get("token");
  try {
    if (token) sessionStorage.setItem("penstock.token", token);
    token ??= sessionStorage.getItem("penstock.token");
  } catch { /* private mode */ }
  if (hash.has("token")) {
    hash.delete("token");
    const rest = hash.toString();
    history.replaceState(null, "", location.pathname + location.search + (rest ? `#${rest}` : ""));
  }
  return { token, graph: hash.get("graph") ?? new URLSearchParams(location.search).get("graph") };
}

/** The address chooses the graph that is chosen now, for a reload and for who gets the link. */
export function remember(graph) {
  const now = new URL(location.href);
  const hash = new URLSearchParams(now.hash.slice(1));
  hash.delete("graph");
  now.hash = hash.toString();
  now.searchParams.set("graph", graph);
  history.replaceState(null, "", now);
}

const THEMES = ["system", "light", "dark"];

export function theme() {
  const button = byId("theme");
  let now = store.get("theme") ?? "system";
  const show = () => {
    if (now === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = now;
    button.setAttribute("aria-label", `Theme: ${now === "system" ? "as the system" : now}`);
    button.title = `Theme: ${now} (T)`;
  };
  const next = () => {
    now = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
    store.set("theme", now);
    show();
  };
  button.onclick = next;
  show();
  return next;
}

/** A message that stays until it is closed, or the same thing is said again. */
export function note(text, { bad = false } = {}) {
  const notes = byId("notes");
  for (const old of notes.children) if (old.dataset.text === text) old.remove();
  const element = document.createElement("div");
  element.className = bad ? "note bad" : "note";
  element.dataset.text = text;
  const words = document.createElement("p");
  words.textContent = text;
  const close = document.createElement("button");
  close.type = "button";
  close.setAttribute("aria-label", "Close this message");
  close.innerHTML = '<svg aria-hidden="true"><use href="#i-x"/></svg>';
  close.onclick = () => element.remove();
  element.append(words, close);
  notes.append(element);
  while (notes.children.length > 3) notes.firstElementChild.remove();
}

export const clearNotes = () => byId("notes").replaceChildren();

/** Single keys, off while a field has the focus, a dialog is open, or the user has switched them off. */
export function shortcuts(actions) {
  const box = byId("help-box");
  const enabled = byId("keys-on");
  enabled.checked = store.get("keys") !== "off";
  enabled.onchange = () => store.set("keys", enabled.checked ? "on" : "off");
  byId("help").onclick = () => box.showModal();
  box.onclick = (event) => { if (event.target === box) box.close(); };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || box.open) return;
    if (event.key === "Escape") { actions.Escape?.(); return; }
    const field = event.target.closest?.("input:not([type=range]):not([type=radio]):not([type=checkbox]), select, textarea");
    if (field || !enabled.checked || event.repeat) return;
    if (event.key === "?") { box.showModal(); event.preventDefault(); return; }
    const action = actions[event.key.toLowerCase()];
    if (action) { action(); event.preventDefault(); }
  });
}
