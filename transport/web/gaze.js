// Where the bits go: what the server looks at, and what this page sends because of it (docs/bitrate.md).
//
// A browser cannot tell its encoder of regions. So: a still of the last seconds on demand, the rate that is of use, and, as the
// user chooses, in place of the whole picture what matters as a track of its own beside a small context, or a background
// that is held still (sent.js).

import { CAPS, COLUMNS, DETECTOR, LOOK, NO_STILL, ROWS, STILL, VERSION, boxOf, read, stepsOf } from "./importance.js";
import { Cropped, Held } from "./sent.js";

const CANVAS = 3; // our kind of regions, of CAPS
const CAPS_MS = 1000;
const RING_MS = 3000, RING_EVERY_MS = 500;
const SENT_FROM = 6; // steps from which on something else than the whole picture is sent: what is only guessed stays in the picture
const CONTEXT = { kbps: 12, fps: 1 }; // until the server says otherwise
const QUALITIES = [0.8, 0.6, 0.4, 0.25, 0.1];
const LOOK_MS = 20000;
const FETCHES = 4; // under way
const NAMES = ["you pointed there", "the model named it", "the model attends to it", "a detector found it"];

const WHY = {
  enough: "more would not help", budget: "the link is shared", path: "the path carries no more",
  deadline: "the largest picture has to come in time", limit: "its limit", least: "its least",
};

/** What each way of sending is for, in a user's words. */
export const HINTS = {
  whole: "Best on a good connection.",
  crop: "For a slow connection: the part you tap, or that is asked about, stays sharp; the rest is small and renewed once a second.",
  held: "For a slow connection: the part you tap, or that is asked about, moves; the rest is blurred and renewed every 2 seconds.",
};

const now = () => Math.floor(performance.now());
const share = (value) => Math.round(Math.min(1, Math.max(0, value)) * 65535);

export class Gaze {
  #link = null;
  #camera = document.createElement("video"); // what is captured, whatever is shown
  #map = null;
  #rate = null;
  #ring = [];
  #fetching = 0;
  #seq = 0;
  #raw = null;
  #sent = null; // Cropped or Held, while it is sent in place of the camera's picture
  #flow = null; // what leaves: kb/s of each track, and of the path
  #granted = []; // by the server, of each track: kbps, expected, why
  #timers = [];
  #overlay;
  #words;
  #figures;
  #from = null;
  #drawn = null;

  /** overlay: a canvas over the picture; picture: the element it lies on; words: says what is going on; figures: says
   * it in numbers, in a part of the page that is hidden while there are none. */
  constructor({ overlay, picture, words, figures }) {
    this.#overlay = overlay;
    this.picture = picture;
    this.#words = words;
    this.#figures = figures;
    this.way = "whole"; // or "crop", "held"
    this.worker = true; // false: never cut frames in a worker
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
    this.#map = this.#rate = this.#flow = null;
    this.#stop();
    this.#link = link;
    if (!link) { this.#paint(); return; }
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
    if (track === this.#raw) return this.#track ?? track;
    this.#raw = track;
    this.#forget();
    this.#stop();
    this.#camera.srcObject = track ? new MediaStream([track]) : null;
    if (track) this.#camera.play().catch(() => {});
    return track;
  }

  /** On the camera's line, while it is not the camera itself. */
  get #track() { return this.#sent instanceof Cropped ? this.#sent.tracks.context : this.#sent?.track ?? null; }

  get cropping() { return this.#sent instanceof Cropped; }

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
      this.#tune();
    }
  }

  /** `focus` of the server's figures. */
  explain(focus) { this.#granted = focus?.kbps ? focus.tracks : []; }

  #tune() {
    const { kbps = 0, fps = 30, context } = this.#rate ?? {};
    if (!this.cropping) { this.#link?.tune("video", { kbps, fps }); return; }
    const rest = context ?? CONTEXT;
    this.#link?.tune("video", rest);
    // before the server divides them, both are to fit into what it gave the whole picture
    this.#link?.tune("crop", { kbps: context || !kbps ? kbps : Math.max(kbps - rest.kbps, Math.ceil(kbps / 2)), fps });
  }

  async #tell(channel) {
    if (channel.readyState !== "open") return;
    this.#flow = (await this.#link?.sending().catch(() => null)) ?? null;
    if (channel.readyState !== "open" || !this.#link) return;
    const view = new DataView(new ArrayBuffer(27));
    const { videoWidth: width, videoHeight: height } = this.#camera;
    view.setUint8(0, VERSION); view.setUint8(1, CAPS); view.setUint16(2, ++this.#seq & 0xffff);
    view.setUint32(4, now() >>> 0); view.setUint8(8, CANVAS);
    view.setUint8(9, (this.#link.crops ? 1 : 0) | (this.#raw ? 2 : 0) | (this.cropping ? 4 : 0));
    view.setUint16(10, RING_MS); view.setUint16(12, width); view.setUint16(14, height);
    view.setUint16(16, this.#map?.seq ?? 0); view.setUint8(18, this.#sent ? Math.round(stepsOf(this.#map, performance.now())) : 0);
    view.setUint32(19, this.#flow?.path_kbps ?? 0); view.setUint32(23, this.#flow?.kbps ?? 0);
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

  // -------------------------------------------------- what is sent in place of the whole picture

  #choose() {
    const map = this.#map;
    // detectors would never again see what is not in their crop
    const trusted = map?.source !== DETECTOR && stepsOf(map, performance.now()) >= SENT_FROM;
    let way = this.#raw && trusted ? this.way : "whole";
    if (way === "crop" && !this.#link?.crops) way = "held"; // a server that takes one track only
    const cells = way === "crop" ? Cropped.choose(this.cropping ? this.#sent.cells : null, map, this.#camera) : null;
    if (way === "crop" && !cells) way = "whole"; // nearly all of it matters
    const have = this.cropping ? "crop" : this.#sent ? "held" : "whole";
    if (way !== have) {
      this.#stop();
      if (way === "crop") {
        this.#sent = new Cropped({ camera: this.#camera, raw: this.#raw, worker: this.worker, changed: () => this.#put() });
      } else if (way === "held" && this.#camera.videoWidth) {
        this.#sent = new Held(this.#camera, () => ({ map: this.#map, fps: this.#rate?.fps }));
      }
      this.#put();
    }
    if (way === "crop") this.#sent.set(cells, this.#rate?.fps || 10);
  }

  /** Our tracks, or the camera's, onto the connection. */
  #put() {
    this.#link?.replace("crop", this.cropping ? this.#sent.tracks.crop : null);
    this.#link?.replace("video", this.#track ?? this.#raw);
    this.#tune();
  }

  #stop() {
    this.#sent?.stop();
    this.#sent = null;
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
    if (this.cropping) {
      const { x, y, w, h } = this.#sent.cells;
      pen.strokeStyle = "#52cbd6";
      pen.lineWidth = 2;
      pen.setLineDash([6, 4]);
      pen.strokeRect(place.x + (x * place.w) / COLUMNS, place.y + (y * place.h) / ROWS, (w * place.w) / COLUMNS, (h * place.h) / ROWS);
      pen.setLineDash([]);
    }
    if (this.#drawn) {
      pen.strokeStyle = "#7fe3ec";
      pen.lineWidth = 2;
      const { x, y, w, h } = this.#drawn;
      pen.strokeRect(place.x + x * place.w, place.y + y * place.h, w * place.w, h * place.h);
    }
    this.#words.textContent = steps
      ? `Sharpest where it is tinted: ${NAMES[this.#map.source]}.${this.#what()}`
      : "Tap the picture, or draw a box on it, to say what matters.";
    const figures = this.#numbers();
    this.#figures.textContent = figures;
    this.#figures.parentElement.hidden = !figures;
  }

  #numbers() {
    const { fps } = this.#rate ?? {};
    const looks = fps ? `The server looks at ${fps >= 10 ? Math.round(fps) : fps} pictures a second. ` : "";
    const granted = this.#granted.map(({ track, kbps, expected, why }) =>
      `${track} ${Math.round(kbps)} kb/s, ${Math.round(expected * 100)} % right expected, ${WHY[why] ?? why}`);
    return looks + (granted.length ? `Granted: ${granted.join("; ")}.` : "");
  }

  /** The words for it; `data-way` says the same for who reads the page by program. */
  #what() {
    this.#words.dataset.way = this.cropping ? `crop by ${this.#sent.way}` : this.#sent ? "held" : "whole";
    const { crop_kbps: crop = 0, video_kbps: rest = 0 } = this.#flow ?? {};
    if (this.cropping) return ` Inside the frame ${crop} kb/s, all around it ${rest} kb/s.`;
    return `${this.#sent ? " The rest is frozen." : ""}${rest ? ` ${rest} kb/s are sent.` : ""}`;
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
