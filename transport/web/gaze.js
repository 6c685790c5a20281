// Where the bits go: what the server looks at, and what this page sends because of it (docs/bitrate.md).
//
// A browser cannot tell its encoder of regions. So: a still of the last seconds on demand, the rate that is of use, and
// (the switch) a background that is held still at an eighth of its size, which costs next to nothing.

const VERSION = 1;
const IMP = 1, RATE = 2, CAPS = 3, STILL = 4, NO_STILL = 5, LOOK = 6;
const COLUMNS = 16, ROWS = 9;
const CANVAS = 3; // our kind of regions, of CAPS
const CAPS_MS = 1000;
const RING_MS = 3000, RING_EVERY_MS = 500;
const HALF_LIFE_MS = 3000;
const STEPS = [[0.8, 24], [0.6, 12], [0.4, 6]]; // confidence → steps of the quantiser, as every sender does
const HELD_FROM = 6; // steps from which on the background is held
const HELD_MS = 2000, HELD_SCALE = 8;
const QUALITIES = [0.8, 0.6, 0.4, 0.25, 0.1];
const LOOK_MS = 20000;
const TAP = { w: 3 / COLUMNS, h: 3 / ROWS };
const FETCHES = 4; // under way
const NAMES = ["you pointed there", "the model named it", "the model attends to it", "a detector found it"];

const now = () => Math.floor(performance.now());
const share = (value) => Math.round(Math.min(1, Math.max(0, value)) * 65535);

/** The box around what a drag or a tap means, inside the picture; in shares of it. */
export function boxOf(from, to) {
  const tapped = Math.abs(from.x - to.x) < 0.02 && Math.abs(from.y - to.y) < 0.02;
  const left = tapped ? from.x - TAP.w / 2 : Math.min(from.x, to.x);
  const top = tapped ? from.y - TAP.h / 2 : Math.min(from.y, to.y);
  const w = tapped ? TAP.w : Math.abs(from.x - to.x);
  const h = tapped ? TAP.h : Math.abs(from.y - to.y);
  const x = Math.min(Math.max(0, left), 1), y = Math.min(Math.max(0, top), 1);
  return { x, y, w: Math.min(left + w, 1) - x, h: Math.min(top + h, 1) - y };
}

/** Reads an IMP or RATE; null for anything else. */
export function read(buffer) {
  const view = new DataView(buffer);
  if (view.byteLength < 4 || view.getUint8(0) !== VERSION) return null;
  const kind = view.getUint8(1), seq = view.getUint16(2);
  if (kind === RATE && view.byteLength === 12) {
    return { kind: "rate", seq, kbps: view.getUint32(4), fps: view.getUint16(8) / 100 };
  }
  if (kind !== IMP || view.byteLength !== 16 + COLUMNS * ROWS) return null;
  if (view.getUint8(12) !== COLUMNS || view.getUint8(13) !== ROWS || view.getUint8(14) > 3) return null;
  return {
    kind: "imp", seq, ttl: view.getUint16(8), confidence: view.getUint8(10) / 255, most: view.getUint8(11),
    source: view.getUint8(14), grid: new Uint8Array(buffer.slice(16)), at: performance.now(),
  };
}

/** Steps of the quantiser that a map is worth at a time. */
export function stepsOf(map, at) {
  if (!map) return 0;
  const dared = STEPS.find(([least]) => map.confidence >= least - 0.003)?.[1] ?? 0;
  const stale = Math.max(0, at - map.at - map.ttl);
  const steps = Math.min(dared, map.most) * 0.5 ** (stale / HALF_LIFE_MS);
  return steps >= 1.5 && map.grid.some((v) => v !== map.grid[0]) ? steps : 0;
}

export class Gaze {
  #link = null;
  #camera = document.createElement("video"); // what is captured, whatever is shown
  #map = null;
  #rate = null;
  #ring = [];
  #fetching = 0;
  #seq = 0;
  #canvas = document.createElement("canvas");
  #small = document.createElement("canvas");
  #heldAt = 0;
  #raw = null;
  #made = null; // the canvas' track while it is sent
  #timers = [];
  #overlay;
  #words;
  #from = null;
  #drawn = null;

  /** overlay: a canvas over the picture; picture: the element it lies on; words: says what is going on. */
  constructor({ overlay, picture, words }) {
    this.#overlay = overlay;
    this.picture = picture;
    this.#words = words;
    this.saving = false;
    this.stills = 0;
    this.#camera.muted = true;
    this.#camera.playsInline = true;
    overlay.addEventListener("pointerdown", (event) => this.#down(event));
    overlay.addEventListener("pointermove", (event) => this.#move(event));
    overlay.addEventListener("pointerup", (event) => this.#up(event));
    overlay.addEventListener("pointercancel", () => { this.#from = this.#drawn = null; });
    overlay.addEventListener("dblclick", () => this.look(null));
    overlay.addEventListener("keydown", (event) => { if (event.key === "Delete" || event.key === "Backspace") this.look(null); });
  }

  /** A new connection (or null): its channel `penstock-rt` must exist before the offer is made. */
  attach(link) {
    this.#timers.forEach(clearInterval);
    this.#timers = [];
    this.#map = this.#rate = null;
    this.#link = link;
    if (!link) { this.#stopMade(); this.#paint(); return; }
    const channel = link.realtime;
    channel.binaryType = "arraybuffer";
    channel.onmessage = ({ data }) => { if (link === this.#link && data instanceof ArrayBuffer) this.#heard(read(data)); };
    this.#timers = [
      setInterval(() => this.#tell(channel), CAPS_MS),
      setInterval(() => this.#keep(), RING_EVERY_MS),
      setInterval(() => { this.#paint(); this.#choose(); }, 200),
    ];
  }

  /** The camera's track, or null. Returns what to send. */
  source(track) {
    if (track === this.#raw) return this.#made ?? track;
    this.#raw = track;
    this.#forget();
    this.#stopMade();
    this.#camera.srcObject = track ? new MediaStream([track]) : null;
    if (track) this.#camera.play().catch(() => {});
    return track;
  }

  /** The user points at a box {x, y, w, h} in shares of the picture, or (null) no longer. */
  look(box) {
    const view = new DataView(new ArrayBuffer(14));
    view.setUint8(0, VERSION); view.setUint8(1, LOOK); view.setUint16(4, LOOK_MS);
    if (box) [box.x, box.y, box.w, box.h].forEach((value, k) => view.setUint16(6 + 2 * k, share(value)));
    this.#link?.sendBytes(view.buffer);
  }

  /** A `fetch` of the server's: answer with a still out of the ring. */
  async fetch(message) {
    const { id, box, capture_ms: at, max_bytes: most, deadline_ms: deadline } = message;
    if (!Number.isInteger(id)) return;
    const began = performance.now();
    if (this.#fetching >= FETCHES) { this.#refuse(id, "too many at once"); return; }
    this.#fetching += 1;
    try {
      const wanted = at === "latest" ? Infinity : at;
      const held = [...this.#ring].sort((a, b) => Math.abs(a.at - wanted) - Math.abs(b.at - wanted));
      const found = at === "latest" ? this.#now() ?? this.#ring.at(-1) : held[0] ?? this.#now();
      const ok = Array.isArray(box) && box.length === 4 && box.every(Number.isFinite) && Number.isFinite(most);
      if (!found || !ok) { this.#refuse(id, found ? "the box cannot be read" : "the camera is off"); return; }
      const cut = boxOf({ x: box[0], y: box[1] }, { x: box[0] + Math.max(0.03, box[2]), y: box[1] + Math.max(0.03, box[3]) });
      const still = await encode(found.picture, cut, most);
      if (!still) this.#refuse(id, `it needs more than ${most} bytes`);
      else if (performance.now() - began > deadline) this.#refuse(id, "its deadline has passed");
      else { this.stills += 1; this.#answer(id, found.at, cut, still); }
    } catch (error) {
      this.#refuse(id, error.message);
    } finally {
      this.#fetching -= 1;
    }
  }

  #answer(id, at, cut, { width, height, bytes }) {
    const out = new Uint8Array(24 + bytes.length), view = new DataView(out.buffer);
    view.setUint8(0, VERSION); view.setUint8(1, STILL);
    view.setUint32(4, id); view.setUint32(8, at >>> 0);
    [cut.x, cut.y, cut.w, cut.h].forEach((value, k) => view.setUint16(12 + 2 * k, share(value)));
    view.setUint16(20, width); view.setUint16(22, height);
    out.set(bytes, 24);
    this.#link?.sendBytes(out.buffer);
  }

  #refuse(id, why) {
    const words = new TextEncoder().encode(why).slice(0, 200), out = new Uint8Array(8 + words.length);
    out.set([VERSION, NO_STILL]);
    new DataView(out.buffer).setUint32(4, id);
    out.set(words, 8);
    this.#link?.sendBytes(out.buffer);
  }

  #heard(message) {
    if (!message) return;
    const last = message.kind === "imp" ? this.#map : this.#rate;
    if (last && ((message.seq - last.seq) & 0xffff) >= 0x8000) return; // older: the channel keeps no order
    if (message.kind === "imp") this.#map = message;
    else {
      this.#rate = message;
      this.#link?.tune({ kbps: message.kbps, fps: message.fps });
    }
  }

  #tell(channel) {
    if (channel.readyState !== "open") return;
    const view = new DataView(new ArrayBuffer(27));
    const { videoWidth: width, videoHeight: height } = this.#camera;
    view.setUint8(0, VERSION); view.setUint8(1, CAPS); view.setUint16(2, ++this.#seq & 0xffff);
    view.setUint32(4, now() >>> 0); view.setUint8(8, CANVAS); view.setUint8(9, this.#raw ? 2 : 0);
    view.setUint16(10, RING_MS); view.setUint16(12, width); view.setUint16(14, height);
    view.setUint16(16, this.#map?.seq ?? 0); view.setUint8(18, this.#made ? Math.round(stepsOf(this.#map, performance.now())) : 0);
    channel.send(view.buffer);
  }

  // -------------------------------------------------- the last seconds

  #now() {
    return this.#raw && this.#camera.videoWidth ? { at: now(), picture: this.#camera } : null;
  }

  async #keep() {
    if (!this.#now()) return;
    const at = now();
    try {
      this.#ring.push({ at, picture: await createImageBitmap(this.#camera) });
    } catch { return; } // no picture yet
    while (this.#ring.length && this.#ring[0].at < at - RING_MS) this.#ring.shift().picture.close();
  }

  #forget() {
    this.#ring.splice(0).forEach(({ picture }) => picture.close());
  }

  // -------------------------------------------------- the background, held

  #choose() {
    const wanted = this.saving && this.#raw && stepsOf(this.#map, performance.now()) >= HELD_FROM;
    if (wanted && !this.#made) this.#startMade();
    if (!wanted && this.#made) { this.#stopMade(); this.#link?.replace("video", this.#raw); }
  }

  #startMade() {
    const { videoWidth: width, videoHeight: height } = this.#camera;
    if (!width) return;
    this.#canvas.width = width; this.#canvas.height = height;
    this.#small.width = Math.ceil(width / HELD_SCALE); this.#small.height = Math.ceil(height / HELD_SCALE);
    this.#heldAt = -Infinity;
    const stream = this.#canvas.captureStream(0);
    [this.#made] = stream.getVideoTracks();
    this.#made.contentHint = "text"; // fewer pictures before blurred ones
    this.#draw();
    this.#link?.replace("video", this.#made);
  }

  #draw() {
    if (!this.#made || !this.#map) return;
    const pen = this.#canvas.getContext("2d", { alpha: false }), at = performance.now();
    const { width, height } = this.#canvas;
    if (at - this.#heldAt > HELD_MS) {
      this.#heldAt = at;
      this.#small.getContext("2d", { alpha: false }).drawImage(this.#camera, 0, 0, this.#small.width, this.#small.height);
    }
    pen.drawImage(this.#small, 0, 0, width, height);
    const grid = this.#map.grid, top = Math.max(...grid);
    const cell = { w: width / COLUMNS, h: height / ROWS };
    for (let row = 0; row < ROWS; row++) {
      for (let from = 0; from < COLUMNS; from++) {
        let to = from; // neighbours in a row are drawn at once
        while (to < COLUMNS && grid[row * COLUMNS + to] * 2 >= top) to++;
        if (to === from) continue;
        const x = Math.floor(from * cell.w), y = Math.floor(row * cell.h);
        const w = Math.ceil(to * cell.w) - x, h = Math.ceil((row + 1) * cell.h) - y;
        pen.drawImage(this.#camera, x, y, w, h, x, y, w, h);
        from = to;
      }
    }
    this.#made.requestFrame?.();
    const fps = Math.min(30, this.#rate?.fps || 30);
    setTimeout(() => this.#draw(), 1000 / fps);
  }

  #stopMade() {
    this.#made?.stop();
    this.#made = null;
  }

  // -------------------------------------------------- the overlay, and pointing

  /** The picture's place in its element: it is shown whole (object-fit: contain). */
  #place() {
    const { clientWidth: width, clientHeight: height } = this.#overlay;
    const shown = this.picture.videoWidth ? this.picture : this.#camera;
    const ratio = shown.videoWidth && shown.videoHeight ? shown.videoWidth / shown.videoHeight : 4 / 3;
    const w = Math.min(width, height * ratio), h = w / ratio;
    return { x: (width - w) / 2, y: (height - h) / 2, w, h };
  }

  #point(event) {
    const place = this.#place(), inside = this.#overlay.getBoundingClientRect();
    return { x: (event.clientX - inside.left - place.x) / place.w, y: (event.clientY - inside.top - place.y) / place.h };
  }

  #down(event) {
    if (!this.#link?.live || event.button) return;
    this.#from = this.#point(event);
    this.#overlay.setPointerCapture(event.pointerId);
  }

  #move(event) {
    if (!this.#from) return;
    this.#drawn = boxOf(this.#from, this.#point(event));
    this.#paint();
  }

  #up(event) {
    if (!this.#from) return;
    const box = boxOf(this.#from, this.#point(event));
    this.#from = this.#drawn = null;
    if (box.w > 0 && box.h > 0) this.look(box);
  }

  #paint() {
    const { clientWidth: width, clientHeight: height } = this.#overlay, pen = this.#overlay.getContext("2d");
    if (this.#overlay.width !== width) this.#overlay.width = width;
    if (this.#overlay.height !== height) this.#overlay.height = height;
    pen.clearRect(0, 0, width, height);
    const steps = stepsOf(this.#map, performance.now()), place = this.#place();
    if (steps) {
      const top = Math.max(...this.#map.grid);
      pen.fillStyle = "#52cbd6";
      this.#map.grid.forEach((value, k) => {
        pen.globalAlpha = 0.35 * (value / top) * Math.min(1, steps / 12);
        const x = place.x + ((k % COLUMNS) * place.w) / COLUMNS, y = place.y + (Math.floor(k / COLUMNS) * place.h) / ROWS;
        if (value * 8 > top) pen.fillRect(x, y, place.w / COLUMNS - 1, place.h / ROWS - 1);
      });
      pen.globalAlpha = 1;
    }
    if (this.#drawn) {
      pen.strokeStyle = "#7fe3ec";
      pen.lineWidth = 2;
      const { x, y, w, h } = this.#drawn;
      pen.strokeRect(place.x + x * place.w, place.y + y * place.h, w * place.w, h * place.h);
    }
    const rate = this.#rate ? ` It looks at ${this.#rate.fps >= 10 ? Math.round(this.#rate.fps) : this.#rate.fps} pictures a second.` : "";
    this.#words.textContent = steps
      ? `The bits go where it is tinted: ${NAMES[this.#map.source]}.${this.#made ? " The rest is held still." : ""}${rate}`
      : `Tap the picture, or draw a box, to say what matters.${rate}`;
  }
}

/** Cut out and made small enough; null when it cannot be. */
async function encode(picture, cut, most) {
  const full = { w: picture.videoWidth ?? picture.width, h: picture.videoHeight ?? picture.height };
  const source = [Math.floor(cut.x * full.w), Math.floor(cut.y * full.h), Math.ceil(cut.w * full.w), Math.ceil(cut.h * full.h)];
  const canvas = document.createElement("canvas");
  for (let scale = 1; scale > 0.2; scale *= 0.75) {
    canvas.width = Math.max(2, Math.round(source[2] * scale));
    canvas.height = Math.max(2, Math.round(source[3] * scale));
    canvas.getContext("2d", { alpha: false }).drawImage(picture, ...source, 0, 0, canvas.width, canvas.height);
    for (const quality of QUALITIES) {
      const blob = await new Promise((done) => canvas.toBlob(done, "image/webp", quality));
      if (blob && blob.size <= most && blob.size <= 60000) {
        return { width: canvas.width, height: canvas.height, bytes: new Uint8Array(await blob.arrayBuffer()) };
      }
    }
  }
  return null;
}
